"""Settings of an evaluation on VIPSeg, from which the command line is generated. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["edges", "hed", "segmentation", "photo", "depth", "normal"]


@dataclass(frozen=True)
class VIPSegRequest:
    """Which videos of VIPSeg are animated from which conditions, and how they are measured."""

    data: Path
    """VIPSeg's folder, with imgs, panomasks and lists of videos such as val.txt."""
    out: Path = Path("vipseg")
    """Output folder for conditions, tracks, real frames, jobs.jsonl, and the runs of anyi2v batch."""
    split: str = "val"
    """List of videos: val for val.txt."""
    videos: int | None = None
    """Use only this many videos from the start of the list; None: all."""
    backbone: str = "micro"
    """Name of a shipped backbone, or a converted .safetensors file; determines size and frames."""
    frames: int | None = None
    """Number of frames of each video, from its beginning; None: the backbone's."""
    conditions: tuple[Kind, ...] = ("edges", "hed", "segmentation")
    """Kinds of conditions made from first frames; one per video, drawn by --seed. depth and normal need files."""
    depth: Path | None = None
    """Folder of depth maps VIDEO.png, each of the first frame of a video and of its size."""
    normal: Path | None = None
    """Folder of normal maps, named in the same way."""
    objects: int = 3
    """Number of things followed per video: the largest."""
    tracker: Path | None = None
    """TorchScript file of a point tracker such as CoTracker, for tracks and metrics; load only files that you trust.
    None: pyramidal Lucas-Kanade."""
    prompts: Path | None = None
    """JSON file with an object that maps videos to prompts; None: the names of the followed things."""
    job: Path | None = None
    """JSON file with an object of additional keys for every job, such as {"comparator": "freetraj"}."""
    extractor: Path | None = None
    """TorchScript file of FID's network; None: no FID."""
    frame_convention: str = "pytorch-fid"
    """Preprocessing for that network."""
    video_extractor: Path | None = None
    """TorchScript file of FVD's network; None: no FVD."""
    video_convention: str = "google"
    """Preprocessing for that network."""
    resamples: int = 100
    """Number of bootstrap draws per interval; 0: no intervals."""
    seed: int = 0
    """Seed of the jobs, of the choice of conditions, and of the draws."""
