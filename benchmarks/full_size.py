"""The complete pipeline at full size: `python -m benchmarks.full_size --scratch folder --out full_size.json`.

Creates random files in a published layout, converts them, loads the result in bfloat16 and animates 16 frames with 2
steps, 1 iteration of optimisation and an inversion of 2 passes. Each stage runs in its own process, so that its peak
memory can be measured and compared with a prediction. Needs 6 GB of disk in the scratch folder and, without an
accelerator, several minutes.
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
    """Published files of one kind of backbone, and the size of the video made with them."""

    files: Mapping[str, tuple[str, str]]
    """By file name: its manifest and the name of its wrapper ("" for none, in safetensors format)."""
    flags: Mapping[str, str]
    """Flags of the converter, with the file passed to each."""
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
"""AnimateDiff's size is a quarter of its native size because it was measured first; the others are native."""


@dataclass(frozen=True)
class Args:
    """Options of the benchmark."""

    scratch: Path
    """Folder for 6 GB of files, which are kept for a second run."""
    family: FamilyName = "animatediff"
    """Family of published files."""
    out: Path | None = None
    """Output JSON file for all figures."""
    stages: tuple[str, ...] = ("make", "convert", "animate")
    """Stages to run; later ones need the files of earlier ones."""


def manifest(name: str) -> Shapes:
    """Return the keys and shapes of a published file."""
    return {key: tuple(shape) for key, shape in json.loads((MANIFESTS / f"{name}.json").read_text()).items()}


def random_tensor(key: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Create contents that preserve signal scale: norms 1, biases 0, variance 1 / inputs; position ids count up."""
    if key.endswith("position_ids"):
        return torch.arange(shape[-1]).reshape(shape)
    if key.endswith(".pe") or key.endswith("bias"):
        return torch.zeros(shape, dtype=torch.float16)
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.float16)
    inputs = 1 if "embedding" in key and "time" not in key else math.prod(shape[1:])
    return (torch.randn(shape, generator=generator) * (0.02 if inputs == 1 else inputs**-0.5)).half()


def make(scratch: Path, family: Family) -> dict[str, Any]:
    """Write the family's files."""
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
    """Convert the family's files to one file of ours."""
    from weights_converters.command import convert

    given: dict[str, Any] = {flag: scratch / file for flag, file in family.flags.items()}
    convert(Convert(**given, dtype="fp16", out=scratch / "full.safetensors"))
    return {"bytes": (scratch / "full.safetensors").stat().st_size}


def animate(scratch: Path, family: Family) -> dict[str, Any]:
    """Load in bfloat16 and make a video; raises NumericsError if it is not finite."""
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
    """Return this process's peak resident memory in bytes; mapped files count only as far as they were read."""
    status = Path("/proc/self/status")
    if status.exists():  # not ru_maxrss, which a process inherits from its parent
        lines = [line.split() for line in status.read_text().splitlines()]
        return next(int(words[1]) * 1024 for words in lines if words[:1] == ["VmHWM:"])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


STAGES: dict[str, Callable[[Path, Family], dict[str, Any]]] = {"make": make, "convert": convert, "animate": animate}


def imported() -> int:
    """Return the peak memory of a process that has imported what the stages need."""
    import open_clip  # noqa: F401

    import anyi2v.pipeline  # noqa: F401
    import weights_converters.command  # noqa: F401

    return peak_memory()


def measured(name: str, scratch: Path, family: Family) -> dict[str, Any]:
    """Run one stage in this process; return its figures, seconds and peak memory. Imports are not timed."""
    imported()
    start = time.perf_counter()
    figures = STAGES[name](scratch, family)
    return {**figures, "seconds": time.perf_counter() - start, "peak": peak_memory()}


def predicted(name: str, scratch: Path, family: Family, imports: int) -> int | None:
    """Predict the peak memory of a stage in bytes from sizes alone; None for creating the files.

    Args:
        name: the stage.
        scratch: folder with the converted file, if the stage is "animate".
        family: the converted files and the video.
        imports: memory of the imported libraries.
    """
    if name == "convert":
        largest = max(math.prod(shape) for file, _ in family.files.values() for shape in manifest(file).values())
        # the windows of all files, each exceeded by one float16 tensor; the rest is read in pieces of a few MiB
        return imports + len(family.files) * (WINDOW + 2 * largest)
    if name == "animate":
        config = read_config(scratch / "full.safetensors")
        needed = predict(config, METHOD, (FRAMES, family.height, family.width), dtype=torch.bfloat16)
        return imports + needed.peak
    return None


def main(args: Args) -> None:
    """Run the stages in turn, each in a new process; print and write the figures."""
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
    """Format seconds, peak and predicted peak of a stage as one line."""
    wish = row["predicted_peak"]
    should = "" if wish is None else f", predicted {wish / 2**30:.2f} GiB ({row['peak'] / wish - 1:+.0%})"
    return f"{name:8} {row['seconds']:7.1f} s, peak {row['peak'] / 2**30:.2f} GiB{should}"


if __name__ == "__main__":
    main(tyro.cli(Args))
