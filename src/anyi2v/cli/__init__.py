"""Animate any conditional image along drawn tracks. `anyi2v --version` prints the version."""

# Flags and help are generated from the dataclasses. torch is imported only when work starts, so that --help is fast.

import errno
import inspect
import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

import anyi2v
from anyi2v.backbone.config import BackboneConfig
from anyi2v.checkpoints.header import read_config, resolve, sources, sparse_control
from anyi2v.cli.animate import Animate
from anyi2v.cli.animate_defaults import animate_defaults, repeated
from anyi2v.cli.batch import BatchCommand
from anyi2v.cli.bench import BenchBackbone, BenchMicro, BenchScaling, BenchStages
from anyi2v.cli.compare import Compare
from anyi2v.cli.condition import Condition, Segments
from anyi2v.cli.convert import Convert
from anyi2v.cli.evaluate import EvalVBench, EvalVideos
from anyi2v.cli.studio import Studio
from anyi2v.cli.tracks import TracksCheck, TracksConvert, TracksFromVideo, TracksShow
from anyi2v.cli.vipseg import EvalVIPSeg
from anyi2v.errors import AnyI2VError, AnyI2VWarning, InputError
from anyi2v.execution.threads import wait_passively
from anyi2v.files import expanded, with_home
from anyi2v.hook_points import Point


@dataclass(frozen=True)
class Demo:
    """Run the method on the shipped micro backbone; needs no input files.

    Examples:
    $ anyi2v demo
    $ anyi2v demo --out somewhere
    """

    out: Path = Path("demo")
    """Output folder for videos and pictures."""
    backbone: str = "micro"
    """Name or file of a backbone trained on the synthetic world."""
    overwrite: bool = False
    """Replace the files of an earlier demo in the folder; other files are kept."""

    def run(self) -> None:
        """Run the demo."""
        from anyi2v.micro.benchmark import demo

        demo.run(self.out, backbone=self.backbone, overwrite=self.overwrite, progress=sys.stderr.isatty())


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
            backbone, image, result = job.observed(recording, recording.observe)
            print(f"page: {write_inspection(folder, backbone, image, result, recording)}")

    def _checkpoint(self) -> None:
        if control := sparse_control(self.what):
            self._control(control)
            return
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


COMMANDS: dict[str, Any] = {
    "animate": Animate,
    "batch": BatchCommand,
    "condition": Condition,
    "segments": Segments,
    "studio": Studio,
    "demo": Demo,
    "inspect": Inspect,
    "compare": Compare,
    "convert": Convert,
    "tracks": {
        "show": TracksShow,
        "convert": TracksConvert,
        "check": TracksCheck,
        "from-video": TracksFromVideo,
    },
    "eval": {"videos": EvalVideos, "vipseg": EvalVIPSeg, "vbench-export": EvalVBench},
    "bench": {
        "micro": BenchMicro,
        "backbone": BenchBackbone,
        "stages": BenchStages,
        "scaling": BenchScaling,
    },
}


def parse(args: Sequence[str], commands: Mapping[str, Any] = COMMANDS, prog: str = "anyi2v") -> Any:
    """Parse the command in `args`; exits with a message and code 2 for invalid flags."""
    name = args[0] if args else ""
    if name not in commands:
        kinds = {key: kind for key, kind in commands.items() if not isinstance(kind, dict)}
        kinds |= {
            f"{key} {sub}": kind
            for key, found in commands.items()
            if isinstance(found, dict)
            for sub, kind in found.items()
        }
        return tyro.extras.subcommand_cli_from_dict(kinds, prog=prog, args=args, description=__doc__)
    kind, prog = commands[name], f"{prog} {name}"
    if isinstance(kind, dict):
        return parse(args[1:], kind, prog)
    default = animate_defaults(args[1:]) if name == "animate" else tyro.MISSING_NONPROP
    description = inspect.cleandoc(kind.__doc__ or "")
    return tyro.cli(kind, prog=prog, args=args[1:], default=default, description=description)


def main(args: Sequence[str] | None = None) -> int:
    """Run the program `anyi2v` and return its exit code.

    0 is success, 1 that jobs of a batch failed, 2 an error that the user can fix, with one line on stderr, and 130
    Ctrl-C.
    """
    wait_passively()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = partial(_print_warning, warnings.showwarning, set())
            warnings.simplefilter("always", AnyI2VWarning)
            args = sys.argv[1:] if args is None else args
            if list(args) == ["--version"]:
                print(f"anyi2v {anyi2v.__version__}")
                return 0
            code = with_home(parse(args)).run()
        sys.stdout.flush()
        return code or 0
    except BrokenPipeError:
        if not _reader_left():
            raise
    except AnyI2VError as error:
        return _refused(str(error))
    except OSError as error:
        # any access to a path longer than the system allows
        if error.errno != errno.ENAMETOOLONG:
            raise
        return _refused(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        print("anyi2v: interrupted; finished files are kept, partial ones are not", file=sys.stderr)
        return 130  # the exit code that shells use for Ctrl-C
    return 0


def _reader_left() -> bool:
    """Return whether the reader of the output has gone (`| head`); the remaining output is then discarded."""
    try:
        print(flush=True)  # at worst an empty line before an unrelated traceback
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _print_warning(
    usual: Callable[..., None], printed: set[str], message: Warning | str, category: type[Warning], *rest: Any
) -> None:
    """Print our own warnings once, on one line and without source location; others by the `usual` function."""
    if issubclass(category, AnyI2VWarning):
        line = "anyi2v: warning: " + " ".join(str(message).split())
        if line not in printed:
            print(line, file=sys.stderr)
        printed.add(line)
    else:
        usual(message, category, *rest)


def _refused(message: str) -> int:
    print("anyi2v: error: " + " ".join(message.split()), file=sys.stderr)
    return 2
