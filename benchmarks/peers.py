"""Our networks and numerics compared with diffusers, transformers and scikit-learn: `python -m benchmarks.peers`.

Same weights and inputs, measured alternately in one process after the outputs were compared. The nearest equivalent of
a pass without temporal layers is UNet2DConditionModel on the frames as a batch, otherwise UNetMotionModel.
"""

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from torch import Tensor, nn

from anyi2v.backbone.networks import channels_last
from anyi2v.backbone.text import TextTower
from anyi2v.backbone.unet import UNet
from anyi2v.backbone.vae import AutoencoderKL
from anyi2v.errors import InputError
from anyi2v.latency.measure import Work, flops, matmul_peak, ratio, seconds, spread, table, threads, write
from anyi2v.latency.options import check_measurement
from anyi2v.numerics import kmeans, pca
from weights_converters.diffusers_configs import motion_config, text_config, unet_config, vae_config
from weights_converters.diffusers_layout import MOTION, TEXT, UNET, VAE
from weights_converters.keymap import Rule, convert


class Shape(NamedTuple):
    """Shape of a UNet and its latents."""

    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    heads: int
    groups: int
    size: int


UNETS = {
    "tiny": Shape((16, 32, 32), (True, True, False), heads=4, groups=8, size=16),
    "micro": Shape((32, 64, 64, 64), (False, True, True, False), heads=4, groups=16, size=32),
    "medium": Shape((64, 128, 256, 256), (True, True, True, False), heads=8, groups=32, size=16),
}
FRAMES, TOKENS, CONTEXT = 16, 77, 64
TOLERANCE = 1e-3
"""Tolerance relative to the largest magnitude, in float32: both sum thousands of products in different orders."""


class Pair(NamedTuple):
    """One comparison: a name, both functions, and the FLOPs of ours (0: not counted)."""

    name: str
    ours: Work
    theirs: Work
    flops: float = 0.0


def library(name: str) -> Any:
    """Import a package of the extra "dev"; raises InputError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"this benchmark compares with {name}, which is not installed; pip install '.[dev]'"
        ) from error


@dataclass(frozen=True)
class Args:
    """Compare our networks and numerics with those of diffusers, transformers and scikit-learn."""

    threads: tuple[int, ...] = (1, 2)
    """Numbers of CPU threads; CPU time is measured on one thread, wall time on several."""
    only: str = ""
    """Only rows whose names start with this; empty: all."""
    budget: float = 4.0
    """Approximate number of seconds per row."""
    out: Path = Path("runs/peers")
    """Output folder for peers.json, peers.md and peers.png."""


def main(args: Args) -> None:
    """Measure all rows with all numbers of threads."""
    check_measurement(args.out, None, args.budget, *args.threads)
    rows, peaks = [], {}
    for count in args.threads:
        with threads(count):
            peaks[count] = matmul_peak()
    for name, make in pairs():
        if not name.startswith(args.only):
            continue
        torch.manual_seed(0)
        with torch.no_grad():
            pair = make()
            check(pair)
            for count in args.threads:
                with threads(count):
                    found = seconds({"ours": pair.ours, "theirs": pair.theirs}, budget=args.budget)
                share = pair.flops / spread(found["ours"]).median / peaks[count]
                rows.append({"name": name, "threads": count, **found, "share_of_peak": share})
                print(line(rows[-1]), flush=True)
    if not rows:
        raise InputError(f"no row begins with {args.only!r}; there are {', '.join(name for name, _ in pairs())}")
    text = report(rows)
    print(text.splitlines()[-1])
    write(args.out, "peers", {"matmul_peak": {str(k): v for k, v in peaks.items()}, "rows": rows})
    (args.out / "peers.md").write_text(text + "\n", encoding="utf-8")
    plot(rows, args.out / "peers.png")


def line(row: dict[str, Any]) -> str:
    """Format one row as a line of text."""
    return f"{row['name']:38} {row['threads']} thread(s)  {ratio(row, 'theirs', 'ours')} times as fast"


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Format the table, and the geometric mean over the UNets."""
    head = ["", "threads", "ours, ms", "theirs, ms", "theirs / ours", "share of matmul peak"]
    lines = []
    for row in rows:
        milliseconds = [str(spread([1000 * s for s in row[who]])) for who in ("ours", "theirs")]
        share = f"{row['share_of_peak']:.0%}" if row["share_of_peak"] else ""
        lines.append([row["name"], str(row["threads"]), *milliseconds, str(ratio(row, "theirs", "ours")), share])
    ratios = [ratio(row, "theirs", "ours").median for row in rows if row["name"].startswith("unet")]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else math.nan
    return (
        table(head, lines) + f"\n\nUNet forwards: geometric mean {mean:.2f}, least {min(ratios, default=math.nan):.2f}"
    )


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot speed-up factors with quartiles, one colour per number of threads."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["name"] for row in rows))
    counts = sorted({row["threads"] for row in rows})
    figure = Figure(figsize=(8, 0.35 * len(names) + 1), dpi=100, layout="constrained")
    axes = figure.subplots()
    for i, count in enumerate(counts):
        shown = [row for row in rows if row["threads"] == count]
        found = [ratio(row, "theirs", "ours") for row in shown]
        at = [names.index(row["name"]) + 0.3 * (i - (len(counts) - 1) / 2) for row in shown]
        error = [[r.median - r.low for r in found], [r.high - r.median for r in found]]
        axes.errorbar([r.median for r in found], at, xerr=error, fmt="o", label=f"{count} thread{'s' * (count > 1)}")
    axes.axvline(1, color="0.7")
    axes.set(xscale="log", xlabel="times as fast as the peer", yticks=range(len(names)), yticklabels=names)
    ticks = [tick for tick in (0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20) if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.invert_yaxis()
    axes.grid(color="0.9")
    axes.legend()
    figure.savefig(path, format="png", metadata={"Software": None})


def check(pair: Pair) -> None:
    """Check that both functions compute the same result."""
    ours, theirs = pair.ours(), pair.theirs()
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        gap = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        assert gap <= TOLERANCE, f"{pair.name}: outputs differ by {gap:.1e} of the largest magnitude"


def pairs() -> list[tuple[str, Callable[[], Pair]]]:
    """Return the names of all rows and functions that create them."""
    found: list[tuple[str, Callable[[], Pair]]] = []
    for size in UNETS:
        for frames in (1, FRAMES):
            for motion in (False, True):
                name = f"unet {size}, {frames} frame(s), motion {'on' if motion else 'off'}"
                found.append((name, partial(unet_pair, name, size, frames, motion)))
    found += [("vae encode", vae_pair), ("vae decode", partial(vae_pair, decode=True)), ("text tower", text_pair)]
    return [*found, ("k-means", kmeans_pair), ("pca", pca_pair)]


def unet_pair(name: str, size: str, frames: int, motion: bool) -> Pair:
    """Compare one forward pass of one clip."""
    diffusers = library("diffusers")
    c = UNETS[size]
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": list(c.channels),
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in c.attention],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(c.attention)],
        "layers_per_block": 2,
        "attention_head_dim": c.heads,
        "cross_attention_dim": CONTEXT,
        "norm_num_groups": c.groups,
    }
    adapter = {
        "block_out_channels": list(c.channels),
        "motion_layers_per_block": 2,
        "motion_num_attention_heads": c.heads,
        "motion_norm_num_groups": c.groups,
        "motion_max_seq_length": 32,
        "use_motion_mid_block": False,
    }
    spatial: Any = diffusers.UNet2DConditionModel(**config).eval()
    modules: Any = diffusers.MotionAdapter(**adapter).eval()
    sources = {f"2d {key}": tensor for key, tensor in spatial.state_dict().items()}
    sources |= {f"motion {key}": tensor for key, tensor in modules.state_dict().items()}
    rules = [rule.within("2d ", "") for rule in UNET] + [rule.within("motion ", "") for rule in MOTION]
    ours = adopt(UNet(unet_config(config, motion_config(adapter, config))), sources, rules)
    z, text = torch.randn(1, frames, 4, c.size, c.size), torch.randn(1, TOKENS, CONTEXT)
    count, _ = flops(lambda: ours(z, 500, text, temporal=motion))
    if motion:
        theirs: Any = diffusers.UNetMotionModel.from_unet2d(spatial, modules).eval()
        video, states = z.transpose(1, 2).contiguous(), text.repeat_interleave(frames, dim=0)
        return Pair(name, partial(ours, z, 500, text), lambda: theirs(video, 500, states).sample.transpose(1, 2), count)
    images, states = z[0], text.expand(frames, -1, -1).contiguous()
    return Pair(name, lambda: ours(z, 500, text, temporal=False)[0], lambda: spatial(images, 500, states).sample, count)


def vae_pair(decode: bool = False) -> Pair:
    """Compare four frames of 64 x 64 pixels, with half of Stable Diffusion's channels."""
    diffusers = library("diffusers")
    config = {
        "block_out_channels": [64, 128, 256, 256],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 32,
        "scaling_factor": 0.18215,
    }
    theirs: Any = diffusers.AutoencoderKL(**config).eval()
    ours = adopt(AutoencoderKL(vae_config(theirs.config)), theirs.state_dict(), VAE)
    if decode:
        latents, scale = torch.randn(4, 4, 8, 8), ours.config.scale
        ours_work, theirs_work = partial(ours.decode, latents), lambda: theirs.decode(latents / scale).sample
    else:
        images, scale = torch.rand(4, 3, 64, 64) * 2 - 1, ours.config.scale
        ours_work, theirs_work = partial(ours.encode, images), lambda: scale * theirs.encode(images).latent_dist.mode()
    return Pair(f"vae {'decode' if decode else 'encode'}", ours_work, theirs_work, flops(ours_work)[0])


def text_pair() -> Pair:
    """Compare two prompts through the shape of CLIP L/14 with a third of its layers."""
    transformers = library("transformers")
    config = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 4,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "vocab_size": 1000,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
    clip = transformers.CLIPTextConfig(**config, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    theirs: Any = transformers.CLIPTextModel(clip).eval()
    ours = adopt(TextTower(text_config(config)), theirs.state_dict(), TEXT)
    ids = torch.randint(1000, (2, 77))
    return Pair("text tower", partial(ours, ids), lambda: theirs(ids).last_hidden_state, flops(partial(ours, ids))[0])


def kmeans_pair() -> Pair:
    """Compare two clusters of 16 frames' similarities, 400 cells each; ours is optimal, theirs has one start."""
    cluster = library("sklearn.cluster")
    values = torch.randn(16, 400)
    points = [row[:, None].numpy() for row in values]
    theirs = lambda: [cluster.KMeans(2, n_init=1, random_state=0).fit(p).labels_ for p in points]  # noqa: E731
    return Pair("k-means", lambda: kmeans.two_means_1d(values), theirs)


def pca_pair() -> Pair:
    """Compare 64 components of 16 frames' features: 4096 vectors of width 256."""
    decomposition = library("sklearn.decomposition")
    x = torch.randn(4096, 256)
    data = x.numpy()
    theirs = lambda: decomposition.PCA(64, svd_solver="covariance_eigh").fit_transform(data)  # noqa: E731
    return Pair("pca", lambda: pca.project(x, pca.fit(x, 64)), theirs)


def adopt(ours: Any, sources: dict[str, Tensor], rules: Sequence[Rule]) -> Any:
    """Load the other network's weights into ours, renamed by the converter's rules."""
    assert isinstance(ours, nn.Module)
    targets = {key: tensor.shape for key, tensor in ours.state_dict().items()}
    ours.load_state_dict(convert(sources, rules, targets)[0])
    channels_last(ours)
    return ours.eval().requires_grad_(False)


if __name__ == "__main__":
    main(tyro.cli(Args))
