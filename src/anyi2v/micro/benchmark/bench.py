"""The benchmark `anyi2v bench micro` of the method and its ablations on generated cases with ground truth.

Its folder has `bench.json` (the compared variants), `cases/SEED-MODALITY/` with the ground truth and one file of frames
per variant, and the report, which is computed from these frames. Existing frames are reused.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyi2v.errors import InputError, ResourceError
from anyi2v.execution.cluster import Death, Workers, spread
from anyi2v.files import atomic, check_place, read_json
from anyi2v.images.media import from_bytes, to_bytes
from anyi2v.micro.benchmark.case import Case, Condition
from anyi2v.micro.benchmark.cases import conditions, make_case
from anyi2v.micro.benchmark.kinds import Kind
from anyi2v.micro.benchmark.methods import Variant
from anyi2v.micro.benchmark.provenance import differences, provenance
from anyi2v.micro.benchmark.variants import GIVEN
from anyi2v.micro.benchmark.workers import worker_backbone
from anyi2v.pipeline import animate, check_job
from anyi2v.reports.record import weights_sha256
from anyi2v.timing import counted


@dataclass(frozen=True)
class Job:
    """One case, to be run by all missing variants."""

    folder: Path
    seed: int
    modality: Condition
    kind: Kind
    backbone: str
    dtype: torch.dtype
    methods: Mapping[str, Variant]

    @property
    def case(self) -> Case:
        """The case, generated from its seed."""
        return make_case(self.seed, self.modality, self.kind)

    def path(self, variant: str) -> Path:
        """Return the file of a variant's frames."""
        return self.folder / (variant.replace(" ", "_").replace("&", "") + ".npz")


def jobs(
    out: Path,
    cases: int,
    seed: int,
    kind: Kind,
    backbone: str,
    dtype: torch.dtype,
    methods: Mapping[str, Variant],
) -> list[Job]:
    """Return the cases seed, seed + 1, ... of the test split, with the kind's conditions in turn."""
    made = []
    modalities = conditions(kind)
    for number in range(cases):
        modality = modalities[number % len(modalities)]
        folder = out / "cases" / f"{seed + number}-{modality}"
        made.append(Job(folder, seed + number, modality, kind, backbone, dtype, methods))
    return made


def prepare(
    out: Path,
    backbone: str,
    dtype: torch.dtype,
    methods: Mapping[str, Variant],
    *,
    cases: int,
    seed: int,
    kind: Kind,
) -> dict[str, Variant]:
    """Create the folder, or check that an existing one can be continued; cases and variants may be added.

    Returns all variants of the folder: its earlier ones, which may lack cases, and `methods`.

    Raises InputError if the folder has other files, was created with other code, another backbone, seed or kind of
    cases, has other settings under the same name, or has more cases; ResourceError if it cannot be written; and what
    `check` raises if a variant cannot be run on the backbone. Nothing is written then.
    """
    check_place(out)
    path, precision = out / "bench.json", str(dtype).removeprefix("torch.")
    wanted = {"sha256": weights_sha256(backbone), "dtype": precision, "kind": kind, "seed": seed, **provenance()}
    settings = {name: variant.to_dict() for name, variant in methods.items()}
    if path.exists():
        settings = _continued(out, read_json(path), wanted, cases, settings)
    elif out.exists() and any(out.iterdir()):
        raise InputError(f"{out} has files that are not a benchmark; give a new or empty folder")
    check(jobs(out, 1, seed, kind, backbone, dtype, methods)[0])
    with atomic(path) as temporary:
        data = {"backbone": backbone, **wanted, "cases": cases, "methods": settings}
        temporary.write_text(json.dumps(data, indent=1) + "\n")
    return {name: Variant.from_dict(values) for name, values in settings.items()}


def _continued(
    out: Path,
    former: Mapping[str, Any],
    wanted: Mapping[str, Any],
    cases: int,
    settings: Mapping[str, dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Merge the settings of all variants of the folder, the earlier ones first; raises InputError for conflicts.

    The backbone's name may differ, because its weights are identified by their digest.
    """
    gaps = differences(former, wanted)
    if cases < former.get("cases", 0):
        gaps.append(f"{former['cases']} cases (now {cases})")
    if gaps:
        raise InputError(f"{out} cannot be continued: it was made with {', '.join(gaps)}; use another --out")
    merged = dict(former["methods"])
    for name, values in settings.items():
        gaps = differences(merged.setdefault(name, values), values)
        if gaps:
            raise InputError(f"{out} has a variant {name!r} with other settings: {', '.join(gaps)}; use another --out")
    return merged


def finished(work: Sequence[Job]) -> dict[str, Variant]:
    """Return the variants for which all cases have been run."""
    return {name: variant for name, variant in work[0].methods.items() if all(job.path(name).exists() for job in work)}


def run_case(job: Job) -> None:
    """Generate the frames of all missing variants; variants with the same inversion share it."""
    missing = {name: variant for name, variant in job.methods.items() if not job.path(name).exists()}
    if not missing:
        return
    backbone, case = worker_backbone(job.backbone, job.dtype), job.case
    image = from_bytes(to_bytes(case.image))
    if not (job.folder / "truth.npz").exists():
        _write(
            job.folder / "truth.npz",
            condition=to_bytes(image),
            frames=to_bytes(case.truth),
            targets=torch.stack([target.centres for target in case.targets]).numpy(),
            masks=torch.stack([target.mask for target in case.targets]).numpy(),
        )
    inverted: dict[tuple[Any, ...], dict[str, Tensor]] = {}
    seconds: dict[tuple[Any, ...], float] = {}
    # variants that record most come first, so that the others find everything they need
    for name, variant in sorted(missing.items(), key=lambda item: -len(item[1].points)):
        config = variant.config
        key = (config.inversion, config.inversion_timestep, config.inversion_stride)
        known = inverted.get(key, {})
        features = known if variant.points <= known.keys() else None
        tracks = case.with_true_masks() if name in GIVEN else case.tracks
        given: dict[str, Any] = {"seed": job.seed, "features": features, "method": variant.method(case)}
        result = animate(backbone, image, case.prompt, tracks, config=config, **given)
        inverted[key] = known | result.features
        taken = seconds.get(key, 0.0) if variant.points and features is not None else 0.0
        seconds.setdefault(key, result.timings.get("inversion", 0.0))
        total = sum(result.timings.values()) + taken
        _write(job.path(name), frames=to_bytes(result.video), seconds=np.array(total))


def _write(path: Path, **arrays: np.ndarray) -> None:
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def check(job: Job) -> None:
    """Check before any work that all variants can be run; raises what `check_job` and other methods' `check` raise."""
    backbone, case = worker_backbone(job.backbone, job.dtype), job.case
    for variant in job.methods.values():
        check_job(backbone, case.image, variant.config, backbone.config.frames, backbone.config.fps)
        if (method := variant.method(case)) is not None:
            method.check(variant.config, backbone.unet, case.tracks, case.prompt, backbone.config.frames)


def run(work: Sequence[Job], workers: Workers | None, *, progress: bool) -> None:
    """Run all jobs, one by one or by single-threaded workers.

    Raises ResourceError for cases whose workers died repeatedly, after all others have been run; and what
    `anyi2v.execution.cluster.spread` raises.
    """
    done = spread(lambda: run_case, work, workers)
    deaths = []
    for job, result in counted(done, len(work), "cases", bar=progress):
        if isinstance(result, Death):
            deaths.append(f"case {job.folder.name}: {result.message}")
    if deaths:
        raise ResourceError("; ".join(deaths))


def frames(path: Path) -> Tensor:
    """Read the video in a file of frames, `f 3 h w` in [0, 1]."""
    with np.load(path) as file:
        return torch.stack([from_bytes(frame) for frame in file["frames"]])


def rows(work: Sequence[Job]) -> Iterator[dict[str, Any]]:
    """Yield the scores of every case, variant and object, computed from the saved frames."""
    for job in work:
        case = job.case
        for name in job.methods:
            with np.load(job.path(name)) as file:
                seconds = float(file["seconds"])
            video = frames(job.path(name))
            common = {"seed": job.seed, "modality": job.modality, "variant": name, "seconds": seconds}
            if job.kind == "pan":
                common["pan_error"] = case.pan_error(video)
            more: dict[str, list[float]] = {}
            if job.kind in ("resize", "zoom"):
                more["area_error"] = case.area_errors(video)
            if len(case.targets) > 1:
                more["identity_kept"] = case.identities_kept(video)
            for number, scores in enumerate(case.scores(video)):
                extra = {metric: values[number] for metric, values in more.items()}
                yield {**common, "object": number + 1, **vars(scores), **extra}
