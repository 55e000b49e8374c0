"""Tables and plots of the paper's claims: `python -m benchmarks.claims --ablations runs/table2 runs/figure8 ...`.

Reads results of `anyi2v bench micro` (bench.json and scores.json of each folder): folders of ablations on the same
cases, and one per kind of case. Runs no jobs.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from anyi2v.errors import InputError
from anyi2v.files import atomic, read_json
from anyi2v.method.config import MethodConfig
from anyi2v.micro.benchmark.bench_report import METRICS, Rows, names, paired, values
from anyi2v.micro.benchmark.methods import TUNED, Variant
from anyi2v.micro.benchmark.statistics import Estimate, estimate
from anyi2v.micro.benchmark.variants import FULL, groups

COLUMNS = {
    "trajectory_error": "trajectory error, px",
    "first_frame_iou": "first-frame IoU",
    "colour_right": "object colour right",
    "background_right": "background right",
}
SWEEPS = {
    "figure 8, components": ("principal components M", "pca_dim"),
    "figure 9": ("t_alpha", "inversion_timestep"),
    "figure A6": ("optimised steps", "optimise_steps"),
    "learning rate": ("learning rate", "lr"),
    "iterations": ("iterations per step", "iterations"),
    "inversion": ("inversion passes", "inversion_stride"),
}
"""Groups of ablations along one number: its label and the setting that holds it."""
STILL = "no optimisation"


@dataclass(frozen=True)
class Args:
    """Folders of finished benchmarks."""

    ablations: tuple[Path, ...] = ()
    """Made with --ablate, on the same cases with the same backbone and full method."""
    kinds: tuple[Path, ...] = ()
    """One folder per kind of case."""
    backbones: tuple[Path, ...] = ()
    """One folder per backbone, on the same cases."""
    out: Path = Path("docs/claims")
    """Output folder for ablations.md, sweeps.png and ablations.json, for kinds.md, or for backbones.md."""


def main(args: Args) -> None:
    """Write tables, plots and the figures behind them."""
    args.out.mkdir(parents=True, exist_ok=True)
    if args.kinds:
        _write(args.out / "kinds.md", comparison([folder(path) for path in args.kinds], "kind"))
    if args.backbones:
        _write(args.out / "backbones.md", comparison([folder(path) for path in args.backbones], "backbone"))
    if args.ablations:
        settings, rows = merged([folder(path) for path in args.ablations])
        figures = {
            "ablations": {name: estimates(rows[name], name) for name in rows},
            "differences": {name: differences(rows[name], name) for name in rows if name != FULL},
            "settings": settings,
        }
        _write(args.out / "ablations.md", ablation_tables(rows, settings))
        _write(args.out / "ablations.json", json.dumps(figures, indent=1) + "\n")
        plot_sweeps(rows, settings, args.out / "sweeps.png")


def _write(path: Path, content: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def folder(path: Path) -> tuple[dict[str, Any], Rows]:
    """Read settings and scores of a benchmark."""
    return read_json(path / "bench.json"), read_json(path / "scores.json")["rows"]


def merged(found: Sequence[tuple[dict[str, Any], Rows]]) -> tuple[dict[str, Any], dict[str, Rows]]:
    """Merge several benchmarks: the settings, and for each variant the rows of the folder it is from.

    Processors round differently, so each variant is paired with the full method of its own folder, or of the first
    folder if its own has none. The row of the full method itself is the first folder's.

    Raises:
        InputError: the folders cannot be compared, or the first has no full method.
    """
    reference = [row for row in found[0][1] if row["variant"] == FULL]
    if not reference:
        raise InputError("the first folder has no full method, with which the others are compared")
    settings, methods, rows = found[0][0], dict[str, dict[str, Any]](), dict[str, Rows]()
    for other, more in found:
        for key in ("sha256", "dtype", "kind", "seed", "cases"):
            if other[key] != settings[key]:
                raise InputError(f"the folders differ in {key}: {settings[key]} and {other[key]}")
        for name, recorded in other["methods"].items():
            method = Variant.from_dict(recorded).to_dict()
            if methods.setdefault(name, method) != method:
                raise InputError(f"the folders have two variants {name!r}")
        beside = more if FULL in names(more) else [*reference, *more]
        for name in names(more):
            rows.setdefault(name, beside)
    return {**settings, "methods": methods}, rows


def estimates(rows: Rows, name: str) -> dict[str, Any]:
    """Mean and interval of one variant, by metric."""
    return {metric: estimate(values(rows, name, metric))._asdict() for metric in COLUMNS}


def differences(rows: Rows, name: str) -> dict[str, Any]:
    """Paired differences between one variant and the full method, by metric."""
    return {metric: paired(rows, name, metric)._asdict() for metric in COLUMNS}


def ablation_tables(rows: Mapping[str, Rows], settings: Mapping[str, Any]) -> str:
    """Format one table per group of ablations, each below the full method's row; for `rows`, see `merged`."""
    config = MethodConfig.from_dict(settings["methods"][FULL])
    head = ["", *COLUMNS.values(), *(f"difference of {name.split(',')[0]}" for name in list(COLUMNS.values())[:2])]
    lines, apart = [], False
    for group, variants in {**groups(config), "other methods": TUNED}.items():
        found = [name for name in variants if name in rows]
        if found:
            lines += [f"### {group[0].upper()}{group[1:]}", "", _row(head), _row(["---"] * len(head))]
            for name in (FULL, *found):
                other = rows[name] is not rows[FULL]
                apart |= other
                lines.append(_row(_cells(rows[name], name, " *" if other else "")))
            lines.append("")
    count = len(values(rows[FULL], FULL, "trajectory_error"))
    lines.append(
        f"{count} cases, the same for all rows; 95 % bootstrap intervals; differences are paired, variant minus full.\n"
    )
    if apart:
        lines.append(
            "*: made later than the others, on another machine, which may round differently; paired with the full "
            "method made there, if it was.\n"
        )
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(rows: Rows, name: str, mark: str) -> list[str]:
    cells = [name + mark, *(str(estimate(values(rows, name, metric))) for metric in COLUMNS)]
    if name == FULL:
        return [*cells, "", ""]
    return [*cells, *(_signed(paired(rows, name, metric)) for metric in list(COLUMNS)[:2])]


def _signed(gap: Estimate) -> str:
    text = f"{gap.mean:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]"
    return text if gap.significant else f"{text}, not significant"


def comparison(found: Sequence[tuple[Mapping[str, Any], Rows]], by: Literal["kind", "backbone"]) -> str:
    """Format one row per kind of case (or backbone) and object.

    A row shows the full method, and its error as a multiple of the error on plain cases (or of micro) and, if all
    folders have it, of the error without optimisation. Settings that differ from the first folder's are listed.
    """
    usual = MethodConfig.from_dict(found[0][0]["methods"][FULL]).to_dict()
    common = {"kind": "plain", "backbone": "micro"}[by]
    extra = [
        metric for metric in ("pan_error", "area_error", "identity_kept") if any(metric in rows[0] for _, rows in found)
    ]
    still = all(STILL in names(rows) for _, rows in found)
    heads = ["not optimised, px", "ratio"] if still else []
    head = [by, "n", *COLUMNS.values(), f"to {common}", *heads, *(METRICS[m] for m in extra)]
    lines = [_row(head), _row(["---"] * len(head))]
    means = {settings[by]: values(rows, FULL, "trajectory_error").mean().item() for settings, rows in found}
    for settings, rows in found:
        objects = sorted({row["object"] for row in rows})
        method = MethodConfig.from_dict(settings["methods"][FULL]).to_dict()
        other = [f"{k}={v}" for k, v in method.items() if v != usual[k]]
        changed = f" ({', '.join(other)})" if other else ""
        for number in objects:
            mine = [row for row in rows if row["object"] == number]
            error = values(mine, FULL, "trajectory_error")
            label = settings[by] + (f", object {number}" if len(objects) > 1 else "") + changed
            cells = [label, str(len(error)), *(str(estimate(values(mine, FULL, metric))) for metric in COLUMNS)]
            cells.append(f"{error.mean() / means[common]:.2f}" if common in means else "")
            if still:
                baseline = values(mine, STILL, "trajectory_error")
                cells += [str(estimate(baseline)), f"{error.mean() / baseline.mean():.2f}"]
            cells += [str(estimate(values(mine, FULL, m))) if m in mine[0] else "" for m in extra]
            lines.append(_row(cells))
    return "\n".join(lines) + "\n"


def plot_sweeps(rows: Mapping[str, Rows], settings: Mapping[str, Any], path: Path) -> None:
    """Plot trajectory error and first-frame IoU along each number, with intervals; circle the full method."""
    from matplotlib.figure import Figure

    methods = {name: Variant.from_dict(recorded).config for name, recorded in settings["methods"].items()}
    figure = Figure(figsize=(3.2 * len(SWEEPS), 5), dpi=100, layout="constrained")
    grid = figure.subplots(2, len(SWEEPS), sharey="row")
    for column, (group, (label, field)) in enumerate(SWEEPS.items()):
        members = [name for name in (FULL, *groups(methods[FULL])[group]) if name in rows]
        points = sorted(_points(methods, members, field), key=lambda point: point[0])
        for axes, metric in zip(grid[:, column], ("trajectory_error", "first_frame_iou"), strict=True):
            found = [(x, estimate(values(rows[name], name, metric)), name) for x, name in points]
            at = [x for x, _, _ in found]
            axes.fill_between(at, [e.low for _, e, _ in found], [e.high for _, e, _ in found], alpha=0.2)
            axes.plot(at, [e.mean for _, e, _ in found], marker=".")
            axes.plot(*zip(*((x, e.mean) for x, e, name in found if name == FULL), strict=True), "o", mfc="none", ms=10)
            if field not in ("inversion_timestep", "optimise_steps", "iterations"):
                axes.set_xscale("log", base=2)
            axes.set(xlabel=label, title=group if metric == "trajectory_error" else None)
            axes.grid(color="0.9")
    grid[0, 0].set_ylabel(COLUMNS["trajectory_error"])
    grid[1, 0].set_ylabel(COLUMNS["first_frame_iou"])
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _points(methods: Mapping[str, MethodConfig], members: Sequence[str], field: str) -> list[tuple[float, str]]:
    """Return pairs of setting value and variant; variants without a number (no PCA, no inversion) are omitted."""
    found = []
    for name in members:
        value, config = getattr(methods[name], field), methods[name]
        if value is not None and config.inversion == methods[FULL].inversion:
            found.append((200 // value + 1 if field == "inversion_stride" else value, name))
    return found


if __name__ == "__main__":
    main(tyro.cli(Args))
