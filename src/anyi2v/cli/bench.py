"""The commands `anyi2v bench ...`, reproducible measurements; import torch only when they run."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from tyro.constructors import PrimitiveConstructorSpec

from anyi2v.checkpoints.header import read_config
from anyi2v.cli.device import Dtype, WorkerCount, network_dtype, workers_of
from anyi2v.cli.messages import LOGGER, bars, remark, result
from anyi2v.comparators.settings import ComparatorName
from anyi2v.errors import InputError
from anyi2v.files import atomic, check_place
from anyi2v.latency.options import ScalingOptions, StagesOptions, within
from anyi2v.method.recipes import recipe
from anyi2v.micro.benchmark.kinds import CAMERA_KINDS, KINDS, Kind

_HYPHENATED: dict[str, Kind] = {kind.replace(" ", "-"): kind for kind in KINDS}
_KIND = PrimitiveConstructorSpec[Kind](
    nargs=1,
    metavar=f"{{{','.join(_HYPHENATED)}}}",
    instance_from_str=lambda args: _HYPHENATED[args[0].replace(" ", "-")],
    is_instance=lambda value: value in KINDS,
    str_from_instance=lambda kind: [kind.replace(" ", "-")],
    choices=tuple(dict.fromkeys((*_HYPHENATED, *KINDS))),
)
"""Parser of `--kind`: names with hyphens, or with spaces as in the tables."""


@dataclass(frozen=True)
class BenchMicro:
    """Measure the method and its ablations on generated cases with ground truth.

    Can be interrupted and resumed. Cases and ablations can be added to an existing folder, but only with the same code.

    Examples:
    $ anyi2v bench micro --cases 48 --workers auto
    $ anyi2v bench micro --cases 100 --kind loose-box --ablate masks --out runs/loose_box
    $ anyi2v bench micro --cases 100 --ablate "table 2" "figure 10" --out runs/table2
    $ anyi2v bench micro --cases 100 --ablate "no optimisation" --methods all --out runs/methods
    """

    cases: int = 48
    """Number of cases. Condition images take turns, as far as the kind of case allows: edge, depth, segmentation,
    photo, sketch, silhouette, mixed."""
    seed: int = 1000
    """Seed of the first case; a case's noise uses the case's seed for all variants."""
    kind: Annotated[Kind, _KIND] = "plain"
    """Kind of cases, that is of scene or user input; see docs/benchmark.md."""
    backbone: str = "micro"
    """Name or file of a backbone trained on the synthetic world."""
    dtype: Dtype = "auto"
    """Dtype of the networks, as for `anyi2v animate`."""
    recipe: Literal["paper", "official"] = "paper"
    """Recipe of the variant "full", overridden by the backbone's own settings."""
    ablate: tuple[str, ...] = ("baselines",)
    """Variants to measure: groups (baselines, "table 2", masks, "figure 8, components", ...), single ones by their
    names in the tables ("no queries"), or all."""
    methods: tuple[Literal["all", ComparatorName], ...] = ()
    """Other methods to compare with, using their settings for the micro backbones; see docs/comparators.md."""
    set: tuple[str, ...] = ()
    """Settings of the method for all variants, as name=value with a JSON value, e.g. lr=0.02."""
    workers: WorkerCount = None
    """Number of parallel single-threaded worker processes, requires the extra "cluster"; auto: one per processor. None:
    one thread in this process."""
    out: Path = Path("runs/bench")
    """Output folder for frames, scores, table and pictures."""

    def run(self) -> None:
        """Run the missing cases, measure everything, print the table."""
        _check(self.cases, self.seed)
        workers = workers_of(self.workers)
        changes = {**read_config(self.backbone).method, **_settings(self.set)}
        config = recipe(self.recipe, changes)
        from anyi2v.execution.machine import describe
        from anyi2v.micro.benchmark import bench
        from anyi2v.micro.benchmark.bench_report import write_report
        from anyi2v.micro.benchmark.methods import Variant, leaderboard
        from anyi2v.micro.benchmark.variants import variants

        ablations = variants(config, self.ablate, given=self.kind not in CAMERA_KINDS)
        methods = {name: Variant(changed) for name, changed in ablations.items()}
        methods |= leaderboard(config, self.methods, self.kind)
        dtype = network_dtype(self.dtype, "cpu")
        known = bench.prepare(self.out, self.backbone, dtype, methods, cases=self.cases, seed=self.seed, kind=self.kind)
        jobs = partial(bench.jobs, self.out, self.cases, self.seed, self.kind, self.backbone, dtype)
        bench.run(jobs(methods), workers, progress=bars())
        made = bench.finished(jobs(known))
        work = jobs(made)
        remark(write_report(self.out, work, list(bench.rows(work)), describe()))
        if missing := [name for name in known if name not in made]:
            names = ", ".join(missing)
            LOGGER.info("not in the report, as cases are missing: %s (add them with --ablate, --methods)", names)
        result(self.out, f"scores, table and pictures: {self.out}")


def _check(cases: int, seed: int) -> None:
    within("--cases", cases, 1, 100_000)
    within("--seed", seed, 0, 2**30 - cases)  # see split_generator


def _settings(pairs: tuple[str, ...]) -> dict[str, object]:
    found = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            found[name] = json.loads(value)
        except ValueError as error:
            raise InputError(f"--set {pair}: {value!r} is not JSON; write for example --set lr=0.02") from error
    return found


@dataclass(frozen=True)
class BenchBackbone:
    """Measure the micro backbone itself by plain text-to-video and by DDIM inversion and reconstruction.

    Can be interrupted and resumed.

    Examples:
    $ anyi2v bench backbone --cases 200 --out backbone.json
    """

    cases: int = 200
    """Number of prompts and of images."""
    seed: int = 5000
    """Seed of the first case."""
    backbone: str = "micro"
    """Name or file of a backbone trained on the synthetic world."""
    dtype: Dtype = "auto"
    """Dtype of the networks, as for `anyi2v animate`."""
    workers: WorkerCount = None
    """Number of parallel single-threaded worker processes, requires the extra "cluster"; auto: one per processor. None:
    one thread in this process."""
    out: Path = Path("runs/backbone.json")
    """Output JSON file with all figures."""

    def run(self) -> None:
        """Print the summary, write the file."""
        _check(self.cases, self.seed)
        workers = workers_of(self.workers)
        check_place(self.out.parent)
        read_config(self.backbone)
        from anyi2v.execution.machine import describe
        from anyi2v.micro.benchmark import quality

        dtype, kept = network_dtype(self.dtype, "cpu"), self.out.with_suffix(".partial.json")
        figures = quality.measure_backbone(
            self.backbone,
            dtype,
            self.cases,
            self.seed,
            workers=workers,
            progress=bars(),
            kept=kept,
        )
        with atomic(self.out) as temporary:
            temporary.write_text(json.dumps({"machine": describe(), **figures}, indent=1) + "\n", encoding="utf-8")
        kept.unlink()
        for name, value in figures["summary"].items():
            remark(f"{name:45} {value:.3f}")
        result(self.out, f"all figures: {self.out}")


@dataclass(frozen=True)
class BenchStages(StagesOptions):
    """Measure the time of each part of a job, and its share of the machine's peak arithmetic.

    Examples:
    $ anyi2v bench stages
    $ anyi2v bench stages --backbone medium --dtype bfloat16 --threads 2
    """

    def run(self) -> None:
        """Measure, print the table, write the files."""
        self.check()
        from anyi2v.latency import stages

        stages.main(self)


@dataclass(frozen=True)
class BenchScaling(ScalingOptions):
    """Measure how the time of iterations, guided steps, inversions and jobs scales with frames, objects, pixels, images
    and steps.

    Examples:
    $ anyi2v bench scaling
    $ anyi2v bench scaling --backbone medium
    """

    def run(self) -> None:
        """Measure, print the table, write the files."""
        self.check()
        from anyi2v.latency import scaling

        scaling.main(self)
