"""Time breakdown of the medium job: `python -m benchmarks.medium_profile`. See `benchmarks.medium_job`.

Profiles every part of a shorter job; the time of its matrix multiplications and attention is compared with the time of
their FLOPs at the machine's measured matmul peak. All values are in U, scaled to the whole job.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time
from typing import Any, Literal

import torch
import tyro
from torch.profiler import ProfilerActivity, profile, record_function

from anyi2v.backbone import attention
from anyi2v.backbone.networks import Backbone
from anyi2v.execution.machine import describe
from anyi2v.files import atomic
from anyi2v.latency.measure import Flops, matmul_peak
from anyi2v.latency.stages import prepare
from anyi2v.method.config import MethodConfig
from anyi2v.operators import choice
from benchmarks.medium_job import PUBLISHED, job, peer, unit_seconds

PRODUCTS = (
    "mkldnn::_linear_pointwise",
    "mkldnn::_convolution_pointwise",
    "aten::mkldnn_convolution",
    "aten::convolution_backward",
    "aten::_slow_conv2d_forward",
    "aten::addmm",
    "aten::mm",
)
"""Operators of linear layers and convolutions; those of attention are `aten::bmm` and fused ones."""
ATTENTION = ("attention", "_InPartsBackward", "ScaledDotProductFlashAttentionForCpuBackward0")
"""Ranges in the profile, including everything inside them."""
SHORT = {"inversion_timestep": 64, "steps": 5, "optimise_steps": 1, "iterations": 2, "inject_steps": 1}
"""A shorter job with all kinds of passes."""


@dataclass(frozen=True)
class Args:
    """Options of the benchmark."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of our network; diffusers' is always float32."""
    out: Path | None = None
    """Output JSON file for all figures."""


@contextmanager
def attention_marked() -> Iterator[None]:
    """Inside the block, mark each attention as a range in the profile."""
    plain = choice.attention

    def marked(*args: Any) -> Any:
        with record_function(ATTENTION[0]):
            return plain(*args)

    attention.attention = choice.attention = marked
    try:
        yield
    finally:
        attention.attention = choice.attention = plain


class Profile:
    """A clock for `job` that counts the seconds spent in operators of one kind."""

    def __init__(self, kind: Literal["products", "attention"]):
        self.kind, self.total = kind, 0.0

    def __enter__(self) -> "Profile":
        self.running = profile(activities=[ProfilerActivity.CPU])
        self.running.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.running.__exit__(*error)

    def __call__(self) -> float:
        """Return the seconds so far and start a new profile."""
        self.__exit__(None, None, None)
        rows = self.running.key_averages()
        if self.kind == "products":
            self.total += sum(row.self_cpu_time_total for row in rows if row.key in PRODUCTS) / 1e6
        else:
            self.total += sum(row.cpu_time_total for row in rows if row.key in ATTENTION) / 1e6
        self.__enter__()
        return self.total


def job_seconds(backbone: Backbone, config: MethodConfig, kind: Literal["products", "attention"]) -> dict[str, float]:
    """Return the seconds in operators of one kind, by part of the job."""
    with Profile(kind) as clock:
        return job(backbone, config, clock)


def main(args: Args) -> None:
    """Run the measurements, print the table, write the file."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    unit = unit_seconds(peer())  # first, see `benchmarks.medium_job`
    dtype, whole = getattr(torch, args.dtype), MethodConfig.official()
    backbone = prepare("medium", dtype)
    short = replace(whole, **SHORT)
    scale = {
        "inversion": whole.inversion_timestep / short.inversion_timestep,
        "optimisation": whole.optimise_steps * whole.iterations / (short.optimise_steps * short.iterations),
        "guided steps": whole.steps / short.steps,
    }
    job(backbone, short, process_time)
    spent = job(backbone, short, process_time)
    with attention_marked():
        found = {kind: job_seconds(backbone, short, kind) for kind in ("products", "attention")}
    with Flops() as counter:
        counts = job(backbone, short, lambda: float(counter.total))
    peak = matmul_peak(dtype)
    rows = {}
    for name in PUBLISHED:
        products, other = found["products"][name], found["attention"][name]
        parts = {"at the peak": counts[name] / peak, "products": products, "attention": other}
        parts |= {"rest": spent[name] - products - other, "together": spent[name]}
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
