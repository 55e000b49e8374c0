"""The whole way at full size: `python -m benchmarks.full_size --scratch folder --out full_size.json`.

Makes random files in a published layout, converts them, loads the result in bfloat16 and animates 16 frames: 2 steps, 1
iteration of optimisation, an inversion of 2 passes. Each stage runs in a process of its own, so its peak memory is its
own; what it should be is computed beforehand. Needs 6 GB of disk in the scratch folder and, without an accelerator,
some minutes.
"""

import dataclasses
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from safetensors.torch import save_file
from torch import Tensor

from anyi2v.checkpoints.foreign import WINDOW
from anyi2v.checkpoints.header import read_config
from anyi2v.cli.convert import Convert
from anyi2v.execution.machine import describe
from anyi2v.execution.memory import predict
from anyi2v.files import atomic
from anyi2v.method.config import MethodConfig

MANIFESTS = Path(__file__).parents[1] / "tests" / "manifests"
FRAMES = 16
METHOD = dataclasses.replace(
    MethodConfig.paper(),
    steps=2,
    optimise_steps=1,
    iterations=1,
    inject_steps=1,
    inversion_timestep=201,
    inversion_stride=200,
)
FamilyName = Literal["animatediff", "lavie", "videocrafter2"]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Family:
    """Published files of one kind of backbone, and the video that is made with them."""

    files: Mapping[str, tuple[str, str]]
    """By file name: its manifest and the name of its wrapper ("": none, and safetensors)."""
    flags: Mapping[str, str]
    """The converter's flags: which file is what."""
    height: int
    width: int


FAMILIES: dict[FamilyName, Family] = {
    "animatediff": Family(
        {"base.safetensors": ("sd15_ldm_full", ""), "motion.ckpt": ("ad_motion_module_v3", "state_dict")},
        {"base": "base.safetensors", "motion_module": "motion.ckpt"},
        256,
        256,
    ),
    "lavie": Family(
        {"sd.safetensors": ("sd15_ldm_full", ""), "lavie_base.pt": ("video/lavie_base_unet", "ema")},
        {"base": "lavie_base.pt", "vae": "sd.safetensors", "text": "sd.safetensors"},
        320,
        512,
    ),
    "videocrafter2": Family(
        {"model.ckpt": ("video/videocrafter2_full", "state_dict")}, {"base": "model.ckpt"}, 320, 512
    ),
}
"""Sizes: AnimateDiff's a quarter of its own, for it was measured first; the others' own."""


@dataclass(frozen=True)
class Args:
    """Options of the benchmark."""

    scratch: Path
    """Folder for files of 6 GB; they stay there, so that a second run need not make them."""
    family: FamilyName = "animatediff"
    """Whose files."""
    out: Path | None = None
    """JSON file for all figures."""
    stages: tuple[str, ...] = ("make", "convert", "animate")
    """Which to run; later ones need the files of the former."""


def manifest(name: str) -> Shapes:
    """Keys and shapes of a published file."""
    return {key: tuple(shape) for key, shape in json.loads((MANIFESTS / f"{name}.json").read_text()).items()}


def random_tensor(key: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Contents that keep the size of signals: norms 1, biases 0, variance 1 / inputs; position ids are counted."""
    if key.endswith("position_ids"):
        return torch.arange(shape[-1]).reshape(shape)
    if key.endswith(".pe") or key.endswith("bias"):
        return torch.zeros(shape, dtype=torch.float16)
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.float16)
    inputs = 1 if "embedding" in key and "time" not in key else math.prod(shape[1:])
    return (torch.randn(shape, generator=generator) * (0.02 if inputs == 1 else inputs**-0.5)).half()


def make(scratch: Path, family: Family) -> dict[str, Any]:
    """Writes the family's files."""
    scratch.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for file, (name, wrapper) in family.files.items():
        tensors = {key: random_tensor(key, shape, generator) for key, shape in manifest(name).items()}
        if wrapper:
            torch.save({wrapper: tensors}, scratch / file)
        else:
            save_file(tensors, scratch / file)
    return {file: (scratch / file).stat().st_size for file in family.files}


def convert(scratch: Path, family: Family) -> dict[str, Any]:
    """From the family's files to one file of ours."""
    from weights_converters.command import convert

    given: dict[str, Any] = {flag: scratch / file for flag, file in family.flags.items()}
    convert(Convert(**given, dtype="fp16", out=scratch / "full.safetensors"))
    return {"bytes": (scratch / "full.safetensors").stat().st_size}


def animate(scratch: Path, family: Family) -> dict[str, Any]:
    """Loads in bfloat16 and makes a video; raises NumericsError if it is not finite."""
    from anyi2v.checkpoints.checkpoint import load
    from anyi2v.pipeline import animate
    from anyi2v.tracks import Track, Tracks

    start = time.perf_counter()
    backbone = load(scratch / "full.safetensors", dtype=torch.bfloat16)
    seconds = {"load": time.perf_counter() - start}
    loaded = peak_memory()
    height, width = family.height, family.width
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    side = height / 8
    boxes = ((side, side, 4 * side, 4 * side), (3 * side, 3 * side, 6 * side, 6 * side))
    tracks = Tracks(width, height, (Track("thing", boxes),))
    result = animate(backbone, image, "a thing", tracks, config=METHOD, frames=FRAMES, progress=True)
    assert result.video.isfinite().all() and len(result.video) == FRAMES
    losses = [record.loss for record in result.losses]
    return {"stages": seconds | result.timings, "peak_after_load": loaded, "losses": losses}


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes; mapped files count as far as they were read."""
    status = Path("/proc/self/status")
    if status.exists():  # not ru_maxrss, which a process inherits from the one that started it
        lines = [line.split() for line in status.read_text().splitlines()]
        return next(int(words[1]) * 1024 for words in lines if words[:1] == ["VmHWM:"])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


STAGES: dict[str, Callable[[Path, Family], dict[str, Any]]] = {"make": make, "convert": convert, "animate": animate}


def imported() -> int:
    """Peak memory of a process that has imported what the stages need."""
    import open_clip  # noqa: F401

    import anyi2v.pipeline  # noqa: F401
    import weights_converters.command  # noqa: F401

    return peak_memory()


def measured(name: str, scratch: Path, family: Family) -> dict[str, Any]:
    """One stage in this process: what it says, seconds, and the peak memory; the imports do not count as its time."""
    imported()
    start = time.perf_counter()
    figures = STAGES[name](scratch, family)
    return {**figures, "seconds": time.perf_counter() - start, "peak": peak_memory()}


def predicted(name: str, scratch: Path, family: Family, imports: int) -> int | None:
    """Peak memory of a stage in bytes, from the sizes alone; None for making the files.

    Args:
        name: the stage.
        scratch: holds the converted file, if the stage is "animate".
        family: what is converted and made.
        imports: memory of the imported libraries.
    """
    if name == "convert":
        largest = max(math.prod(shape) for file, _ in family.files.values() for shape in manifest(file).values())
        # the windows of all files, each overrun by a tensor of float16; the rest goes by pieces of some MiB
        return imports + len(family.files) * (WINDOW + 2 * largest)
    if name == "animate":
        config = read_config(scratch / "full.safetensors")
        needed = predict(config, METHOD, (FRAMES, family.height, family.width), dtype=torch.bfloat16)
        return imports + needed.peak
    return None


def main(args: Args) -> None:
    """Runs the stages one after another, each in a new process; prints and writes the figures."""
    family = FAMILIES[args.family]
    spawn = multiprocessing.get_context("spawn")
    rows: dict[str, Any] = {}
    with spawn.Pool(1) as pool:
        imports = pool.apply(imported)
    for name in args.stages:
        wish = predicted(name, args.scratch, family, imports)
        print(f"{name}: predicted peak {'open' if wish is None else f'{wish / 2**30:.2f} GiB'}", flush=True)
        with spawn.Pool(1) as pool:
            rows[name] = pool.apply(measured, (name, args.scratch, family)) | {"predicted_peak": wish}
        print(table_row(name, rows[name]), flush=True)
    if args.out:
        data = {
            "machine": describe(),
            "family": args.family,
            "video": {"frames": FRAMES, "height": family.height, "width": family.width},
            "method": METHOD.to_dict(),
            "imports": imports,
            "stages": rows,
        }
        with atomic(args.out) as temporary:
            temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def table_row(name: str, row: Mapping[str, Any]) -> str:
    """Seconds, peak and predicted peak of a stage in one line."""
    wish = row["predicted_peak"]
    should = "" if wish is None else f", predicted {wish / 2**30:.2f} GiB ({row['peak'] / wish - 1:+.0%})"
    return f"{name:8} {row['seconds']:7.1f} s, peak {row['peak'] / 2**30:.2f} GiB{should}"


if __name__ == "__main__":
    main(tyro.cli(Args))
