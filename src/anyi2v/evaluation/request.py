"""What an evaluation is asked for. Free of torch: the command line is made from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Metric = Literal["fid", "kid", "fvd", "kvd", "objmc", "trajectory", "fd", "structure", "clip"]
METRICS: tuple[Metric, ...] = get_args(Metric)


@dataclass(frozen=True)
class Request:
    """Which videos are evaluated, by what."""

    generated: Path
    """Folder of generated videos: mp4, GIF, npz, folders of frames or of runs."""
    real: Path | None = None
    """Folder of real videos of the same names, to compare with."""
    tracks: Path | None = None
    """Folder of track files of the same names, or of runs: for objmc and trajectory."""
    metrics: tuple[Metric, ...] = ("fid", "kid", "fvd", "kvd", "objmc")
    """What is measured; see docs/evaluation.md."""
    extractor: Path | None = None
    """TorchScript file of the network of fid and kid; load only files that you trust."""
    frame_convention: str | None = None
    """What that network gets: pytorch-fid, stylegan, as-is."""
    video_extractor: Path | None = None
    """TorchScript file of the network of fvd and kvd; load only files that you trust."""
    video_convention: str | None = None
    """What that network gets: google, styleganv, videogpt, cd-fvd, as-is."""
    images: Path | None = None
    """Folder of condition images of the same names, or of runs: for structure."""
    structure_network: Path | None = None
    """TorchScript file of structure's network, such as DINO; None: the one that a package of the extra eval holds."""
    clip: Path | None = None
    """Weights of an open_clip model, for clip."""
    clip_model: str = "ViT-B-32"
    """Its name in open_clip."""
    prompts: Path | None = None
    """For clip: folder of runs, or JSON file with an object of prompts by names of videos."""
    resamples: int = 100
    """Bootstrap draws of the videos behind each interval; 0: no intervals."""
    seed: int = 0
    """Of the draws, and of the kernel distances' subsets."""
