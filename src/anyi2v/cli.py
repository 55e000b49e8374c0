"""Animate any conditional image along drawn tracks."""

# Flags and help are made from the dataclasses. torch is imported only where work begins: help is instant.

import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from anyi2v.backbone.config import BackboneConfig
from anyi2v.backbone.header import read_config, resolve, sources
from anyi2v.cli_bench import BenchBackbone, BenchMicro, BenchPeers, BenchScaling, BenchStages
from anyi2v.cli_condition import Condition, ConditionFlags
from anyi2v.cli_tracks import TracksCheck, TracksConvert, TracksShow
from anyi2v.config import MethodConfig, recipe
from anyi2v.conversion import Convert
from anyi2v.errors import AnyI2VError, InputError
from anyi2v.files import read_json

if TYPE_CHECKING:
    from torch import Tensor

    from anyi2v.backbone.checkpoint import Backbone
    from anyi2v.pipeline import Result
    from anyi2v.taps import Taps


@dataclass(frozen=True)
class Animate(ConditionFlags):
    """Animate a condition image along tracks.

    Examples:
    $ anyi2v animate --image edges.png --prompt "a red circle on a navy background" --tracks tracks.json
    $ anyi2v animate --image edges.png --prompt "a blue star" --recipe official --method.lr 0.02 --out star
    $ anyi2v animate --repeat star/run.json --out again
    """

    prompt: str | None = None
    """What the video shows. Needed unless --repeat is given."""
    tracks: Path | None = None
    """File with boxes or paths over time: ours, AnyI2V's or of six other projects; see `anyi2v tracks check`.
    Without it nothing is moved."""
    out: Path = Path("out")
    """Folder for video, pictures and run.json."""
    backbone: str = "micro"
    """Name of a shipped backbone, or a converted .safetensors file."""
    recipe: Literal["paper", "official"] = "paper"
    """Preset of all --method flags: the paper's equations, or the published code."""
    repeat: Path | None = None
    """run.json of an earlier run: its values are the defaults, its condition.png lies beside it."""
    seed: int = 0
    """Of the initial noise; equal seed, device and threads give equal bytes."""
    frames: int | None = None
    """Frames of the video; None: the backbone's."""
    fps: int | None = None
    """Frames per second of the video; None: the backbone's. Some backbones move differently for it."""
    negative_prompt: str = ""
    """What the video does not show."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the networks; latents and losses are float32 always."""
    threads: int | None = None
    """CPU threads; None: PyTorch's choice."""
    cache: Path | None = None
    """Folder where inverted images are kept: other tracks on the same image and prompt then need no inversion."""
    overwrite: bool = False
    """Replace a former run in the folder."""
    method: MethodConfig = field(default_factory=MethodConfig)
    """Settings of the method. Where two ways are named, the first is the paper's."""

    def run(self) -> None:
        """Computes and writes the run; prints where it is and how long it took."""
        if (self.image is None and not self.layer) or self.prompt is None:
            raise InputError("animate needs --image and --prompt, or --repeat run.json")
        from anyi2v import report
        from anyi2v.taps import no_taps

        report.check_out(self.out, overwrite=self.overwrite)
        _, image, result = self.compute(no_taps)
        report.write_run(
            self.out,
            result,
            image,
            backbone=self.backbone,
            device=self.device,
            dtype=self.dtype,
            overwrite=self.overwrite,
        )
        total = sum(result.timings.values())
        print(f"{self.out / 'video.mp4'}: {len(result.video)} frames in {total:.1f} s; see {self.out / 'report.html'}")

    def compute(self, taps: "Taps") -> "tuple[Backbone, Tensor, Result]":
        """The backbone, the image at the video's size, and the result of the job, watched by `taps`."""
        import torch

        from anyi2v import media
        from anyi2v.backbone.checkpoint import load
        from anyi2v.conditions import load_condition
        from anyi2v.pipeline import animate

        assert self.prompt is not None
        if self.repeat:
            _check_backbone(self.repeat, self.backbone)
        _prepare_torch(self.device, self.threads)
        image, fit = load_condition(**self.condition(read_config(self.backbone)))
        tracks = media.load_placed(self.tracks, fit)
        backbone = load(self.backbone, device=self.device, dtype=getattr(torch, self.dtype))
        result = animate(
            backbone,
            image,
            self.prompt,
            tracks,
            config=self.method,
            seed=self.seed,
            frames=self.frames,
            fps=self.fps,
            negative_prompt=self.negative_prompt,
            cache=self.cache,
            taps=taps,
            progress=sys.stderr.isatty(),
        )
        return backbone, image, result


def _prepare_torch(device: str, threads: int | None) -> None:
    """Raises InputError if there is no such device, or for a number of threads below 1."""
    import torch

    if threads is not None:
        if threads < 1:
            raise InputError(f"--threads {threads} is not allowed; it must be at least 1")
        torch.set_num_threads(threads)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True)
class Demo:
    """Show the method on the shipped micro backbone, without any files.

    Examples:
    $ anyi2v demo
    $ anyi2v demo --out somewhere
    """

    out: Path = Path("demo")
    """Folder for videos and pictures."""
    backbone: str = "micro"
    """Name of a shipped backbone trained on the synthetic world, or a file of one."""
    overwrite: bool = False
    """Replace a former demo in the folder."""

    def run(self) -> None:
        """Runs the demo."""
        from anyi2v.micro import demo

        demo.run(self.out, backbone=self.backbone, overwrite=self.overwrite, progress=sys.stderr.isatty())


@dataclass(frozen=True)
class Inspect:
    """Look inside a finished run, or print what a checkpoint says of itself.

    A run is repeated, and pictures of its features, similarities, masks and inversion are put on its report.html.

    Examples:
    $ anyi2v inspect out
    $ anyi2v inspect out --layers 2.0 2.1 --steps 0 7 --frames 1 4 8
    $ anyi2v inspect micro
    $ anyi2v inspect animatediff.safetensors --points
    """

    what: Annotated[str, tyro.conf.Positional]
    """Folder of a run; or name of a shipped backbone, or a converted .safetensors file."""
    points: bool = False
    """Of a checkpoint: list every hook point of the UNet with its shape (batch 1, the backbone's own size)."""
    layers: tuple[str, ...] = ()
    """Of a run: layers like 1.0 (up block 1, layer 0); default: those that the run injects or aligns."""
    steps: tuple[int, ...] = ()
    """Of a run: denoising steps, from 0; default: the first, the last optimised one and the last."""
    frames: tuple[int, ...] = ()
    """Of a run: frames of the video, from 1; default: 8 of them."""

    def run(self) -> None:
        """Draws the run, or prints the checkpoint's configuration and parameter counts."""
        if Path(self.what).is_dir():
            if self.points:
                raise InputError(f"--points is for checkpoints, but {self.what} is a folder")
            self._run()
        elif self.layers or self.steps or self.frames:
            raise InputError(f"--layers, --steps and --frames are for folders of runs; {self.what} is none")
        else:
            self._checkpoint()

    def _run(self) -> None:
        folder = Path(self.what)
        if not (folder / "run.json").is_file():
            raise InputError(f"folder {folder} holds no run: there is no run.json in it")
        job = repeated(folder / "run.json")
        from anyi2v.inspection import Recording, select, write_inspection

        known, frames = _points(read_config(job.backbone)), job.frames
        assert frames is not None  # every record has it
        chosen = select(job.method, known, frames, layers=self.layers, steps=self.steps, show=self.frames)
        recording = Recording(chosen, job.method, known)
        backbone, image, result = job.compute(recording)
        print(f"page: {write_inspection(folder, backbone, image, result, recording)}")

    def _checkpoint(self) -> None:
        config = read_config(self.what)
        print(json.dumps(json.loads(config.to_json()), indent=1))
        for path in list(sources(resolve(self.what)))[1:]:
            print(f"the file holds parts only; the rest is in {path}")
        counts = _parameters(config)
        for part, count in (*counts.items(), ("all", sum(counts.values()))):
            print(f"{part:5} {count:>13,} parameters")
        if self.points:
            for name, shape in _points(config).items():
                print(f"{name}  {'x'.join(map(str, shape))}")


def _parameters(config: BackboneConfig) -> dict[str, int]:
    import torch

    from anyi2v.backbone.checkpoint import build

    with torch.device("meta"):
        networks = build(config).networks
    return {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}


def _points(config: BackboneConfig) -> dict[str, tuple[int, ...]]:
    import torch

    from anyi2v.backbone.unet import UNet, points

    with torch.device("meta"):
        unet = UNet(config.unet)
    factor = config.vae.factor
    size = {"height": config.height // factor, "width": config.width // factor}
    return points(unet, frames=config.frames, **size)


@dataclass(frozen=True)
class _Base:
    """The flags that decide the defaults of others."""

    backbone: str | None = None
    recipe: Literal["paper", "official"] | None = None
    repeat: Path | None = None


def animate_defaults(args: Sequence[str]) -> Animate:
    """The defaults of `anyi2v animate` under the --backbone, --recipe and --repeat among `args`.

    With --repeat, its values hold, except for the method where --recipe or another --backbone is asked for.
    Raises InputError for an unknown backbone or an unusable run.json, CheckpointError for a broken backbone.
    """
    base, _ = tyro.cli(_Base, args=args, return_unknown_args=True, add_help=False)
    default = Animate() if base.repeat is None else repeated(base.repeat)
    backbone = base.backbone or default.backbone
    name = base.recipe or default.recipe
    if base.repeat is None or base.recipe or backbone != default.backbone:
        default = replace(default, method=recipe(name, read_config(backbone).method))
    return replace(default, backbone=backbone, recipe=name, repeat=base.repeat)


_REPEATED = ("prompt", "negative_prompt", "seed", "frames", "fps", "width", "height", "device", "dtype", "threads")


def repeated(path: Path) -> Animate:
    """The flags of the run that `path` records; raises InputError naming what is unusable."""
    data = read_json(path)
    try:
        values: dict[str, Any] = {key: data[key] for key in _REPEATED}
        backbone, method = data["backbone"]["name"], MethodConfig.from_dict(data["method"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is not the record of a run: {error!r}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    image = path.with_name("condition.png")
    return Animate(image=image, tracks=path, repeat=path, backbone=backbone, method=method, **values)


def _check_backbone(path: Path, backbone: str) -> None:
    """Raises InputError if run `path` used this backbone, but its file was another one then."""
    from anyi2v.report import sha256

    former = read_json(path)["backbone"]
    if former["name"] == backbone and former["sha256"] != sha256(resolve(backbone)):
        raise InputError(
            f"backbone {backbone} is another file than the one that {path} was made with (SHA-256 "
            f"{former['sha256']}); find that one, or start a new run without --repeat"
        )


COMMANDS: dict[str, Any] = {
    "animate": Animate,
    "condition": Condition,
    "demo": Demo,
    "inspect": Inspect,
    "convert": Convert,
    "tracks": {"show": TracksShow, "convert": TracksConvert, "check": TracksCheck},
    "bench": {
        "micro": BenchMicro,
        "backbone": BenchBackbone,
        "stages": BenchStages,
        "scaling": BenchScaling,
        "peers": BenchPeers,
    },
}


def parse(args: Sequence[str], commands: Mapping[str, Any] = COMMANDS, prog: str = "anyi2v") -> Any:
    """The command in `args`, ready to run; exits with a message and code 2 for unusable flags."""
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
    """The program `anyi2v`: 0, or 2 and one line on stderr where the user can mend something."""
    try:
        parse(sys.argv[1:] if args is None else args).run()
    except AnyI2VError as error:
        print("anyi2v: error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0
