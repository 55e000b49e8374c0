"""Where the time of the medium job goes: `python -m benchmarks.medium_profile`. See `benchmarks.medium_job`.

Of a shorter job every part is profiled; what its products and its attention take is put beside what the FLOPs would
take at the machine's measured matmul peak. All in U, scaled to the whole job.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch.profiler import ProfilerActivity, profile, record_function

from anyi2v.backbone import attention, temporal
from anyi2v.config import MethodConfig
from anyi2v.files import atomic
from anyi2v.machine import describe
from benchmarks.measure import flops, matmul_peak
from benchmarks.medium_job import PUBLISHED, cpu_seconds, job, network, peer, unit_seconds

PRODUCTS = (
    "mkldnn::_linear_pointwise",
    "mkldnn::_convolution_pointwise",
    "aten::mkldnn_convolution",
    "aten::convolution_backward",
    "aten::_slow_conv2d_forward",
    "aten::addmm",
    "aten::mm",
)
"""Operators of linear layers and convolutions; those of attention are `aten::bmm` and fused."""
ATTENTION = ("attention", "_InPartsBackward", "ScaledDotProductFlashAttentionForCpuBackward0")
"""Ranges of the profile, with all that happens inside."""
SHORT = {"inversion_timestep": 64, "steps": 5, "optimise_steps": 1, "iterations": 2, "inject_steps": 1}
"""A shorter job with all kinds of passes."""


@dataclass(frozen=True)
class Args:
    """Options of the benchmark."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of our network; diffusers' is always float32."""
    out: Path | None = None
    """JSON file for all figures."""


@contextmanager
def attention_marked() -> Iterator[None]:
    """Within the block the profile has a range around each attention."""
    plain = attention.attend

    def marked(*args: Any) -> Any:
        with record_function(ATTENTION[0]):
            return plain(*args)

    attention.attend = temporal.attend = marked
    try:
        yield
    finally:
        attention.attend = temporal.attend = plain


def seconds_of(kind: Literal["products", "attention"]) -> Callable[[Callable[[], Any]], tuple[float, Any]]:
    """A measure of `job`: seconds that a piece of work spends in operators of one kind."""

    def measure(work: Callable[[], Any]) -> tuple[float, Any]:
        with profile(activities=[ProfilerActivity.CPU]) as found:
            result = work()
        rows = found.key_averages()
        if kind == "products":
            spent = sum(row.self_cpu_time_total for row in rows if row.key in PRODUCTS)
        else:
            spent = sum(row.cpu_time_total for row in rows if row.key in ATTENTION)
        return spent / 1e6, result

    return measure


def main(args: Args) -> None:
    """Measures, prints the table, writes the file."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    unit = unit_seconds(peer())  # first, see `benchmarks.medium_job`
    dtype, whole = getattr(torch, args.dtype), MethodConfig.official()
    unet = network(args.dtype)
    short = replace(whole, **SHORT)
    scale = {
        "inversion": whole.inversion_timestep / short.inversion_timestep,
        "optimisation": whole.optimise_steps * whole.iterations / (short.optimise_steps * short.iterations),
        "guided steps": whole.steps / short.steps,
    }
    job(unet, short, cpu_seconds)
    time = job(unet, short, cpu_seconds)
    with attention_marked():
        found = {kind: job(unet, short, seconds_of(kind)) for kind in ("products", "attention")}
    counts, peak = job(unet, short, flops), matmul_peak(dtype)
    rows = {}
    for name in PUBLISHED:
        products, other = found["products"][name], found["attention"][name]
        parts = {"at the peak": counts[name] / peak, "products": products, "attention": other}
        parts |= {"rest": time[name] - products - other, "together": time[name]}
        rows[name] = {part: value * scale[name] / unit for part, value in parts.items()}
    rows["job"] = {part: sum(rows[name][part] for name in PUBLISHED) for part in rows["inversion"]}
    print(f"U = {unit:.2f} s; {args.dtype}, matmul peak {peak / 1e9:.0f} GFLOP/s")
    print(f"{'':14}" + "".join(f"{part:>13}" for part in rows["job"]))
    for name, row in rows.items():
        print(f"{name:14}" + "".join(f"{value:11.1f} U" for value in row.values()))
    if args.out:
        data = {"machine": describe(), "dtype": args.dtype, "matmul_peak": peak, "unit_seconds": unit, "rows": rows}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with atomic(args.out) as temporary:
            temporary.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args))
