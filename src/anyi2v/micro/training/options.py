"""The options of the trainer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["motion_modules", "rotary", "factorised"]


@dataclass(frozen=True)
class Args:
    """Options of the trainer."""

    out: Path = Path("runs/micro")
    """Folder of checkpoints, records and the finished backbone."""
    images: float = 60
    """Minutes for the image stage; 0 leaves it out, and so for the others."""
    vae: float = 10
    """Minutes for the autoencoder."""
    motion: float = 45
    """Minutes for the motion stage."""
    control: float = 0
    """Minutes for a sparse control network (SparseCtrl) of the finished backbone --spatial, by default the shipped one;
    nothing else is then trained."""
    processes: int = 2
    """Training processes of one thread each; their gradients are averaged."""
    device: str = "cpu"
    """Or a GPU ("cuda"), with one process."""
    bf16: bool = True
    """Mixed precision: weights in float32, products in bfloat16."""
    compile: bool = False
    """Compile the UNet, which takes minutes and a C++ compiler, and trains about 1.2 times as fast on a CPU."""
    save_every: float = 5
    """Minutes between checkpoints, each with its validation loss and a sheet of samples."""
    samples: int = 4
    """On each sheet, in the folder `samples`: captions and what is made of them by then; 0: no sheets."""
    start: Path | None = None
    """A backbone of the same architecture whose weights all stages begin with, instead of random ones; at half the
    learning rate, for they are to be kept."""
    spatial: Path | None = None
    """A finished micro backbone. Its spatial weights, text tower and autoencoder stay as they are, and only temporal
    layers are trained: the motion stage."""
    temporal: Kind = "motion_modules"
    """AnimateDiff's, LaVie's or VideoCrafter2's kind of temporal layers."""
    steps: int | None = None
    """Fixed number of steps per stage, instead of minutes (for tests and exact repetition)."""
    batch: float = 1.0
    """Factor on the batch sizes."""
