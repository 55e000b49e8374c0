"""Options of the trainer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["motion_modules", "rotary", "factorised"]


@dataclass(frozen=True)
class Args:
    """Train the micro backbone on the synthetic world."""

    out: Path = Path("runs/micro")
    """Output folder for checkpoints, records and the finished backbone."""
    images: float = 60
    """Minutes for the image stage; 0 skips it, as for the other stages."""
    vae: float = 10
    """Minutes for the autoencoder."""
    motion: float = 45
    """Minutes for the motion stage."""
    control: float = 0
    """Minutes for a sparse control network (SparseCtrl) of the finished backbone --spatial, by default the shipped one;
    nothing else is then trained."""
    agreement: float = 0.02
    """Weight of the agreement between modalities in the image stage, relative to a noise error of about 0.01; 0 skips
    it."""
    processes: int = 2
    """Number of single-threaded training processes, whose gradients are averaged."""
    device: str = "cpu"
    """Device: "cpu", or "cuda" with one process."""
    bf16: bool = True
    """Use mixed precision: weights in float32, matrix multiplications in bfloat16."""
    compile: bool = False
    """Compile the UNet, which takes minutes and needs a C++ compiler; trains about 1.2 times as fast on a CPU."""
    save_every: float = 5
    """Minutes between checkpoints, each with its validation loss and a sheet of samples."""
    samples: int = 4
    """Number of samples on each sheet in the folder `samples`; 0: no sheets."""
    start: Path | None = None
    """Backbone of the same architecture to start all stages from instead of random weights, at half the learning
    rate."""
    spatial: Path | None = None
    """Finished micro backbone whose spatial weights, text tower and autoencoder are kept; only temporal layers are
    trained, in the motion stage."""
    temporal: Kind = "motion_modules"
    """Kind of temporal layers: AnimateDiff's, LaVie's or VideoCrafter2's."""
    steps: int | None = None
    """Fixed number of steps per stage, instead of minutes (for tests and exact repetition)."""
    batch: float = 1.0
    """Factor on the batch sizes."""
