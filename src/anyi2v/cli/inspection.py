"""The command `anyi2v inspect`: a run's internals, or a checkpoint's configuration. Imports torch only when it runs."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from anyi2v.backbone.config import BackboneConfig
from anyi2v.checkpoints.header import read_config, resolve, sources, sparse_control
from anyi2v.cli.animate_defaults import repeated
from anyi2v.cli.messages import result
from anyi2v.errors import InputError
from anyi2v.files import expanded
from anyi2v.hook_points import Point


@dataclass(frozen=True)
class Inspect:
    """Visualise the internals of a finished run, or print a checkpoint's configuration.

    A run is repeated, and pictures of its features, similarities, masks and inversion are added to its report.html.

    Examples:
    $ anyi2v inspect out
    $ anyi2v inspect out --layers 2.0 2.1 --steps 0 7 --frames 1 4 8
    $ anyi2v inspect micro
    $ anyi2v inspect animatediff.safetensors --points
    $ anyi2v inspect sparsectrl-rgb.safetensors
    """

    what: Annotated[str, tyro.conf.Positional]
    """Folder of a run, name of a shipped backbone or sparse control network, or converted .safetensors file."""
    points: bool = False
    """For a checkpoint: list every hook point of the UNet with its shape (batch 1, the backbone's default size). Points
    marked "on request" are computed only for taps that name them."""
    layers: tuple[str, ...] = ()
    """For a run: layers to show, such as 1.0 (up block 1, layer 0). Default: those that the run injects or aligns."""
    steps: tuple[int, ...] = ()
    """For a run: denoising steps to show, from 0. Default: the first, the last optimised and the last step."""
    frames: tuple[int, ...] = ()
    """For a run: frames to show, from 1. Default: 8 frames."""

    def run(self) -> None:
        """Draw the run, or print the checkpoint's configuration and parameter counts."""
        if os.path.isdir(expanded(self.what)):
            if self.points:
                raise InputError(f"--points is for checkpoints, but {self.what} is a folder")
            self._run()
        elif self.layers or self.steps or self.frames:
            raise InputError(f"--layers, --steps and --frames are for folders of runs; {self.what} is not one")
        else:
            self._checkpoint()

    def _run(self) -> None:
        from anyi2v.reports.folder import RECORD, claimed, recover

        folder = expanded(self.what)
        recover(folder)
        if not (folder / RECORD).is_file():
            raise InputError(f"folder {folder} has no run: run.json is missing")
        job = repeated(folder / RECORD)
        if job.method_name != "anyi2v":
            raise InputError(f"{folder} was made by {job.method_name}; inspect only supports AnyI2V")
        from anyi2v.reports.inspection import write_inspection
        from anyi2v.reports.recording import Recording, select

        known, frames = _points(read_config(job.backbone)), job.frames
        assert frames is not None  # every record has it
        chosen = select(job.method, known, frames, layers=self.layers, steps=self.steps, show=self.frames)
        recording = Recording(chosen, job.method, known)
        with claimed(folder):
            backbone, image, video = job.observed(recording, recording.observe)
            page = write_inspection(folder, backbone, image, video, recording)
            result(page, f"page: {page}")

    def _checkpoint(self) -> None:
        if control := sparse_control(self.what):
            self._control(control)
            return
        try:
            resolve(self.what)
        except InputError as error:
            raise InputError(f"{error}; there is no folder of a run of this name either") from error
        config = read_config(self.what)
        print(json.dumps(json.loads(config.to_json()), indent=1))
        for path in list(sources(resolve(self.what)))[1:]:
            print(f"the file only has parts; the rest is in {path}")
        counts = _parameters(config)
        for part, count in (*counts.items(), ("all", sum(counts.values()))):
            print(f"{part:5} {count:>13,} parameters")
        if self.points:
            for name, point in _points(config).items():
                print(f"{name}  {'x'.join(map(str, point.shape))}{'  on request' * point.costly}")

    def _control(self, path: Path) -> None:
        if self.points:
            raise InputError(f"--points is for backbones, but {path} is a sparse control network (SparseCtrl)")
        import torch

        from anyi2v.backbone.sparse_control import SparseControlNetwork
        from anyi2v.checkpoints.sparse_control import read_control_config

        config = read_control_config(path)
        print(f"sparse control network (SparseCtrl) for animate --sparsectrl.control, condition: {config.condition}")
        print(json.dumps(json.loads(config.to_json()), indent=1))
        with torch.device("meta"):
            count = sum(p.numel() for p in SparseControlNetwork(config).parameters())
        print(f"all   {count:>13,} parameters")


def _parameters(config: BackboneConfig) -> dict[str, int]:
    import torch

    from anyi2v.backbone.networks import build

    with torch.device("meta"):
        networks = build(config).networks
    return {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}


def _points(config: BackboneConfig) -> dict[str, Point]:
    import torch

    from anyi2v.backbone.unet import UNet, points

    with torch.device("meta"):
        unet = UNet(config.unet)
    factor = config.vae.factor
    size = {"height": config.height // factor, "width": config.width // factor}
    return points(unet, frames=config.frames, tokens=config.text.length, **size)
