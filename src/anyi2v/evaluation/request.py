"""Settings of an evaluation, from which the command line is generated. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Metric = Literal["fid", "kid", "fvd", "kvd", "objmc", "trajectory", "fd", "structure", "clip"]
METRICS: tuple[Metric, ...] = get_args(Metric)


@dataclass(frozen=True)
class Request:
    """Videos to evaluate, and the metrics."""

    generated: Path
    """Folder of generated videos: mp4, GIF, npz, folders of frames or of runs."""
    real: Path | None = None
    """Folder of real videos with the same names, to compare with."""
    tracks: Path | None = None
    """Folder of track files with the same names, or of runs; used by objmc and trajectory."""
    metrics: tuple[Metric, ...] = ("fid", "kid", "fvd", "kvd", "objmc")
    """Metrics to compute; see docs/evaluation.md."""
    tracker: Path | None = None
    """TorchScript file of a point tracker such as CoTracker, for objmc and trajectory; load only files that you trust.
    None: pyramidal Lucas-Kanade."""
    extractor: Path | None = None
    """TorchScript file of the network for fid and kid; load only files that you trust."""
    frame_convention: str | None = None
    """Preprocessing for that network: pytorch-fid, stylegan, as-is."""
    video_extractor: Path | None = None
    """TorchScript file of the network for fvd and kvd; load only files that you trust."""
    video_convention: str | None = None
    """Preprocessing for that network: google, styleganv, videogpt, cd-fvd, as-is."""
    images: Path | None = None
    """Folder of condition images with the same names, or of runs; used by structure."""
    structure_network: Path | None = None
    """TorchScript file of the network for structure, such as DINO; None: the network from the extra eval."""
    clip: Path | None = None
    """Weights of an open_clip model, used by clip."""
    clip_model: str = "ViT-B-32"
    """Name of that model in open_clip."""
    prompts: Path | None = None
    """Prompts for clip: a folder of runs, or a JSON file with an object that maps video names to prompts."""
    resamples: int = 100
    """Number of bootstrap draws of videos per interval; 0: no intervals."""
    seed: int = 0
    """Seed of the draws and of the kernel distances' subsets."""
