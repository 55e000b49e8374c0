"""What an evaluation is asked for. Free of torch: the command line is made from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Metric = Literal["fid", "kid", "fvd", "kvd", "objmc"]
METRICS: tuple[Metric, ...] = get_args(Metric)


@dataclass(frozen=True)
class Request:
    """Which videos are evaluated, by what."""

    generated: Path
    """Folder of generated videos: mp4, GIF, npz, folders of frames or of runs."""
    real: Path | None = None
    """Folder of real videos of the same names, to compare with."""
    tracks: Path | None = None
    """Folder of track files of the same names, or of runs: for objmc."""
    metrics: tuple[Metric, ...] = METRICS
    """What is measured; see docs/evaluation.md."""
    extractor: Path | None = None
    """TorchScript file of the network of fid and kid; load only files that you trust."""
    frame_convention: str | None = None
    """What that network gets: pytorch-fid, stylegan, as-is."""
    video_extractor: Path | None = None
    """TorchScript file of the network of fvd and kvd; load only files that you trust."""
    video_convention: str | None = None
    """What that network gets: google, styleganv, videogpt, cd-fvd, as-is."""
    resamples: int = 100
    """Bootstrap draws of the videos behind each interval; 0: no intervals."""
    seed: int = 0
    """Of the draws, and of the kernel distances' subsets."""
