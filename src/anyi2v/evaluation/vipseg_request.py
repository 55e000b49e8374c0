"""What an evaluation on VIPSeg is asked for. Free of torch: the command line is made from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["edges", "hed", "segmentation", "photo"]


@dataclass(frozen=True)
class VIPSegRequest:
    """Which videos of VIPSeg are animated from which conditions, and what they are measured by."""

    data: Path
    """VIPSeg's folder, with imgs, panomasks and lists of videos such as val.txt."""
    out: Path = Path("vipseg")
    """Folder for conditions, tracks, real frames, jobs.jsonl, and the runs that anyi2v batch makes of it."""
    split: str = "val"
    """List of videos: val for val.txt."""
    videos: int | None = None
    """Only the first so many of the list; None: all."""
    backbone: str = "micro"
    """Decides size and frames: name of a shipped backbone, or a converted .safetensors file."""
    frames: int | None = None
    """Of each video, from its beginning; None: the backbone's."""
    conditions: tuple[Kind, ...] = ("edges", "hed", "segmentation")
    """What first frames are turned into, one of these for each video, drawn by --seed."""
    objects: int = 3
    """Things of a video that are followed: the largest."""
    prompts: Path | None = None
    """JSON file with an object of prompts by video; None: the names of the things that are followed."""
    job: Path | None = None
    """JSON file with an object of further keys for every job, such as {"comparator": "freetraj"}."""
    extractor: Path | None = None
    """TorchScript file of FID's network; None: no FID."""
    frame_convention: str = "pytorch-fid"
    """What that network gets."""
    video_extractor: Path | None = None
    """TorchScript file of FVD's network; None: no FVD."""
    video_convention: str = "google"
    """What that network gets."""
    resamples: int = 100
    """Bootstrap draws behind each interval; 0: no intervals."""
    seed: int = 0
    """Of the jobs, the kinds of conditions, and the draws."""
