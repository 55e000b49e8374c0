"""Which features follow an object? `python -m benchmarks.features --out docs/features`.

Quantifies Fig. 5 of the paper. Clips of the synthetic world are noised to a timestep and passed to the UNet. For
queries, residual hidden states and attention maps of each layer, projected onto their first principal components: how
well does the similarity to the object's centre in frame 1 separate the object from the background, in frame 1 (entity)
and in later frames (consistency)? The measure is the area under the ROC curve: 1 is perfect separation, 0.5 is chance.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from anyi2v.backbone.networks import Backbone
from anyi2v.backbone.unet import points, record
from anyi2v.checkpoints.checkpoint import load
from anyi2v.diffusion import add_noise, level
from anyi2v.execution.machine import describe
from anyi2v.files import atomic
from anyi2v.images.media import write_image
from anyi2v.micro.benchmark.case import Case
from anyi2v.micro.benchmark.cases import make_case
from anyi2v.micro.benchmark.statistics import estimate
from anyi2v.micro.world.world import object_masks
from anyi2v.reports.feature_pictures import colours, reduced
from anyi2v.reports.plots import contact_sheet

KINDS = {
    "query": "up_blocks.{}.attentions.{}.query",
    "residual hidden": "up_blocks.{}.resnets.{}.hidden",
    "attention map": "up_blocks.{}.attentions.{}.probs",
}


@dataclass(frozen=True)
class Args:
    """Options of the study."""

    cases: int = 50
    """Number of clips from the test split."""
    first_seed: int = 1000
    """Seed of the first clip."""
    timesteps: tuple[int, ...] = (801, 601, 201)
    """Noise levels; the method optimises at the first two and injects features of the third."""
    components: int = 16
    """Number of principal components in which similarities are computed."""
    backbone: str = "micro"
    """Name or file of a micro backbone."""
    out: Path = Path("runs/features")
    """Output folder for features.json, features.md and pca.png."""


def layers(backbone: Backbone) -> list[tuple[str, int, int]]:
    """Return (kind, up block, layer) of all features of the UNet."""
    known = points(backbone.unet)
    return [
        (kind, i, j) for kind, name in KINDS.items() for i in range(4) for j in range(4) if name.format(i, j) in known
    ]


@torch.no_grad()
def features(backbone: Backbone, case: Case, timestep: int) -> dict[tuple[str, int, int], Float[Tensor, "f h w c"]]:
    """Compute the features of a noised ground-truth clip of the case, with temporal layers on."""
    latent = backbone.vae.encode(2 * case.truth - 1)[None]
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(case.seed))
    z = add_noise(latent, noise, level(backbone.config.schedule, timestep))
    wanted = layers(backbone)
    names = [KINDS[kind].format(i, j) for kind, i, j in wanted]
    seen = record(backbone.unet, names, z, timestep, backbone.encode_text([case.prompt]))
    return {key: _channels_last(key[0], seen[name]) for key, name in zip(wanted, names, strict=True)}


def _channels_last(kind: str, feature: Tensor) -> Float[Tensor, "f h w c"]:
    """Move channels last; those of an attention map are its probabilities per key, averaged over heads."""
    if kind == "attention map":
        maps = feature[0].mean(1)
        return rearrange(maps, "f (h w) m -> f h w m", h=round(maps.shape[1] ** 0.5))
    return feature[0] if kind == "query" else rearrange(feature[0], "f c h w -> f h w c")


def area_under_curve(score: Float[Tensor, "f h w"], inside: Bool[Tensor, "f h w"]) -> float:
    """Return the probability that a cell inside scores higher than one outside (ties are rare and ignored)."""
    ranks = score.flatten().argsort().argsort().double() + 1
    count, others = int(inside.sum()), int((~inside).sum())
    if not count or not others:
        return float("nan")
    return ((ranks[inside.flatten()].sum() - count * (count + 1) / 2) / (count * others)).item()


def separation(
    feature: Float[Tensor, "f h w c"], mask: Bool[Tensor, "f hh ww"], components: int
) -> tuple[float, float]:
    """Return the area under the curve in frame 1 and in the later frames."""
    projected = reduced(feature, components)
    cells = F.adaptive_avg_pool2d(mask.float(), (feature.shape[1], feature.shape[2]))
    inside = cells > 0.5
    y, x = divmod(int(cells[0].argmax()), cells.shape[-1])
    score = F.cosine_similarity(projected, projected[0, y, x].expand_as(projected), dim=-1)
    return area_under_curve(score[:1], inside[:1]), area_under_curve(score[1:], inside[1:])


def masks(case: Case) -> Bool[Tensor, "f h w"]:
    """Return the object's mask in every ground-truth frame."""
    return object_masks(case.scene)[0]


def main(args: Args) -> None:
    """Run the measurements, print the table, write the folder."""
    backbone = load(args.backbone)
    found: dict[tuple[str, int, int, int], list[tuple[float, float]]] = {}
    for seed in tqdm(range(args.first_seed, args.first_seed + args.cases), desc="clips"):
        case = make_case(seed, "photo")
        for t in args.timesteps:
            for key, feature in features(backbone, case, t).items():
                found.setdefault((*key, t), []).append(separation(feature, masks(case), args.components))
    rows = []
    for (kind, i, j, t), pairs in found.items():
        entity, consistency = (estimate(torch.tensor(values)) for values in zip(*pairs, strict=True))
        rows.append({"feature": kind, "layer": f"{i}.{j}", "timestep": t, "entity": entity, "consistency": consistency})
    lines = ["| feature | layer | t | entity | consistency |", "|---|---|---|---|---|"]
    lines += [f"| {r['feature']} | {r['layer']} | {r['timestep']} | {r['entity']} | {r['consistency']} |" for r in rows]
    print("\n".join(lines))
    args.out.mkdir(parents=True, exist_ok=True)
    plain = [{**row, "entity": row["entity"]._asdict(), "consistency": row["consistency"]._asdict()} for row in rows]
    for name, text in (
        ("features.md", "\n".join(lines) + "\n"),
        ("features.json", json.dumps({"machine": describe(), "cases": args.cases, "rows": plain}, indent=1) + "\n"),
    ):
        with atomic(args.out / name) as temporary:
            temporary.write_text(text)
    case = make_case(args.first_seed, "photo")
    pictures = {"clip": case.truth}
    for (kind, i, j), feature in features(backbone, case, args.timesteps[1]).items():
        if (i, j) in ((1, 1), (2, 0)):
            pictures[f"{kind} {i}.{j}"] = colours(feature)
    write_image(args.out / "pca.png", contact_sheet(pictures, cell=96))


if __name__ == "__main__":
    main(tyro.cli(Args))
