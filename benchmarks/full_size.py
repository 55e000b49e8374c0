"""The whole way at full size: `python -m benchmarks.full_size --scratch folder --out full_size.json`.

Makes random files in the layouts of Stable Diffusion 1.5 (one LDM file, float16) and AnimateDiff v3 (.ckpt), converts
them, loads the result in bfloat16 and animates 16 frames of 256 x 256 pixels: 2 steps, 1 iteration of optimisation, an
inversion of 2 passes. Each stage runs in a process of its own, so its peak memory is its own; what it should be is
computed beforehand. Needs 6 GB of disk in the scratch folder and, without an accelerator, some minutes.
"""

import dataclasses
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from safetensors.torch import save_file
from torch import Tensor

from anyi2v.backbone.config import BackboneConfig, UNetConfig
from anyi2v.backbone.unet import UNet, record
from anyi2v.config import MethodConfig
from anyi2v.files import atomic
from anyi2v.machine import describe

MANIFESTS = Path(__file__).parents[1] / "tests" / "manifests"
FRAMES, SIZE = 16, 256
METHOD = dataclasses.replace(
    MethodConfig.paper(),
    steps=2,
    optimise_steps=1,
    iterations=1,
    inject_steps=1,
    inversion_timestep=201,
    inversion_stride=200,
)
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Args:
    """Options of the benchmark."""

    scratch: Path
    """Folder for files of 6 GB; they stay there, so that a second run need not make them."""
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


def make(scratch: Path, names: tuple[str, str] = ("sd15_ldm_full", "ad_motion_module_v3")) -> dict[str, Any]:
    """Writes the two sources; names of their manifests."""
    scratch.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    base, motion = (
        {key: random_tensor(key, shape, generator) for key, shape in manifest(name).items()} for name in names
    )
    save_file(base, scratch / "base.safetensors")
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in motion.items()}}, scratch / "motion.ckpt")
    return {path.name: path.stat().st_size for path in sources(scratch)}


def sources(scratch: Path) -> list[Path]:
    """The two files that `make` writes."""
    return [scratch / "base.safetensors", scratch / "motion.ckpt"]


def convert(scratch: Path) -> dict[str, Any]:
    """From the two sources to one file of ours."""
    from anyi2v.conversion import Convert
    from weights_converters.command import convert

    base, motion = sources(scratch)
    said = convert(Convert(base=base, motion_module=motion, dtype="fp16", out=scratch / "full.safetensors"))
    return {"said": said.splitlines()[0], "bytes": (scratch / "full.safetensors").stat().st_size}


def animate(scratch: Path) -> dict[str, Any]:
    """Loads in bfloat16 and makes a video; raises NumericsError if it is not finite."""
    from anyi2v.backbone.checkpoint import load
    from anyi2v.pipeline import animate
    from anyi2v.tracks import Track, Tracks

    start = time.perf_counter()
    backbone = load(scratch / "full.safetensors", dtype=torch.bfloat16)
    seconds = {"load": time.perf_counter() - start}
    loaded = peak_memory()
    image = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    boxes = ((32.0, 32.0, 128.0, 128.0), (96.0, 96.0, 192.0, 192.0))
    tracks = Tracks(SIZE, SIZE, (Track("thing", boxes),))
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


STAGES: dict[str, Callable[[Path], dict[str, Any]]] = {"make": make, "convert": convert, "animate": animate}


def imported() -> int:
    """Peak memory of a process that has imported what the stages need."""
    import open_clip  # noqa: F401

    import anyi2v.pipeline  # noqa: F401
    import weights_converters.command  # noqa: F401

    return peak_memory()


def measured(name: str, scratch: Path) -> dict[str, Any]:
    """One stage in this process: what it says, seconds, and the peak memory; the imports do not count as its time."""
    imported()
    start = time.perf_counter()
    figures = STAGES[name](scratch)
    return {**figures, "seconds": time.perf_counter() - start, "peak": peak_memory()}


def predicted(name: str, imports: int, window: int) -> int | None:
    """Peak memory of a stage in bytes, from the sizes alone; None for making the files.

    Args:
        name: the stage.
        imports: memory of the imported libraries.
        window: bytes of each source that stay mapped at most, see `anyi2v.backbone.foreign.WINDOW`.
    """
    unet, vae, text = 859_520_964 + 417_137_600, 83_653_863, 123_060_480
    if name == "convert":
        largest = max(math.prod(shape) for shape in manifest("sd15_ldm_full").values())
        # the windows of both sources, each overrun by a tensor of float16; the rest goes by pieces of some MiB
        return imports + 2 * window + 2 * 2 * largest
    if name == "animate":
        weights = 2 * (unet + text) + 4 * vae
        mapped = 2 * (unet + vae + text)
        # a chunk of 8 frames in the finest level of the decoder: input, norm, activation and output of a convolution
        decoding = 8 * SIZE**2 * 4 * (3 * 256 + 128)
        return imports + weights + max(mapped, saved_bytes(UNetConfig(), METHOD), decoding)
    return None


def saved_bytes(config: UNetConfig, method: MethodConfig, frames: int = FRAMES, size: int = SIZE) -> int:
    """Bytes that the pass of the optimisation keeps for its gradient, counted on the meta device in bfloat16."""
    kept: dict[int, Tensor] = {}
    with torch.device("meta"):
        unet = UNet(config).to("meta", torch.bfloat16).requires_grad_(False)
        z = torch.empty(1, frames, config.latent_channels, size // 8, size // 8, requires_grad=True)
        text = torch.empty(1, 77, config.context_dim)
    own = {id_of(tensor) for tensor in (*unet.parameters(), *unet.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        if id_of(tensor) not in own:
            kept[id_of(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        record(unet, method.align, z, torch.zeros(1, dtype=torch.long, device="meta"), text)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def id_of(tensor: Tensor) -> int:
    """What tensors on the same memory have in common."""
    return tensor.untyped_storage()._cdata


def main(args: Args) -> None:
    """Runs the stages one after another, each in a new process; prints and writes the figures."""
    from anyi2v.backbone.foreign import WINDOW

    spawn = multiprocessing.get_context("spawn")
    rows: dict[str, Any] = {}
    with spawn.Pool(1) as pool:
        imports = pool.apply(imported)
    for name in args.stages:
        wish = predicted(name, imports, WINDOW)
        print(f"{name}: predicted peak {'open' if wish is None else f'{wish / 2**30:.2f} GiB'}", flush=True)
        with spawn.Pool(1) as pool:
            rows[name] = pool.apply(measured, (name, args.scratch)) | {"predicted_peak": wish}
        print(table_row(name, rows[name]), flush=True)
    if args.out:
        config = json.loads(BackboneConfig(name="full").to_json())
        data = {
            "machine": describe(),
            "backbone": config,
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
