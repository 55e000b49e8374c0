"""Training of the backbone "scenes": `python -m benchmarks.scenes.train --package package --out runs/scenes`.

The trainer is micro's, with its three stages; see `anyi2v.micro.training.train`. The objects are read from the unpacked
npm package @lobehub/fluent-emoji-3d.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from anyi2v.micro.training.options import Args
from anyi2v.micro.training.train import main
from benchmarks.scenes.lessons import lessons


@dataclass(frozen=True)
class Options(Args):
    """Train the backbone "scenes" on rendered objects over procedural grounds."""

    out: Path = Path("runs/scenes")
    """Output folder for checkpoints, records and the finished backbone."""
    images: float = 300
    """Minutes for the image stage; 0 skips it, as for the other stages."""
    vae: float = 30
    """Minutes for the autoencoder."""
    motion: float = 180
    """Minutes for the motion stage."""
    agreement: float = 0.2
    """Weight of the agreement between modalities in the image stage, relative to an error of v of about 0.2; 0 skips
    it."""
    package: Path = Path("package")
    """Unpacked npm package @lobehub/fluent-emoji-3d."""


if __name__ == "__main__":
    options = tyro.cli(Options)
    print(main(options, lessons(options.package)))
