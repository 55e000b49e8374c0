"""Check that videos are byte for byte the same as when their digests were recorded.

    python -m benchmarks.video_bytes             # compares; exit code 1 if a video differs
    python -m benchmarks.video_bytes --record    # writes benchmarks/results/video_bytes.json

For code changes that must not affect results. One thread, float32, the shipped backbones and a tiny random one, recipes
"paper" and "official". Bytes depend on the processor and on PyTorch: both are recorded, and others are refused.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

import anyi2v
from anyi2v.files import atomic
from anyi2v.method.config import MethodConfig
from anyi2v.method.recipes import recipe
from anyi2v.micro.benchmark.cases import make_case
from anyi2v.versions import processor
from tests.networks import SHORT, tiny_backbone

RECORDED = Path(__file__).parent / "results" / "video_bytes.json"


@dataclass(frozen=True)
class Args:
    """Options of the comparison."""

    record: bool = False
    """Write the digests instead of comparing them."""


def jobs() -> Iterator[tuple[str, anyi2v.Backbone, MethodConfig]]:
    """Yield the name, backbone and settings of each video."""
    for name in ("paper", "official"):
        tiny = {key: value for key, value in SHORT.to_dict().items() if value != getattr(MethodConfig(), key)}
        yield f"tiny, {name}", tiny_backbone(), recipe(name, tiny)
        yield f"micro, {name}", (micro := anyi2v.load("micro")), recipe(name, micro.config.method)
    for name in ("micro-lavie", "micro-vc2"):
        backbone = anyi2v.load(name)
        yield f"{name}, paper", backbone, recipe("paper", backbone.config.method)


def digest(backbone: anyi2v.Backbone, config: MethodConfig) -> str:
    """Return the SHA-256 of the video's float32 values."""
    case = make_case(1003, "photo")
    image, prompt = case.image, case.prompt
    if backbone.config.name == "tiny":
        image, prompt = torch.nn.functional.interpolate(image[None], size=(16, 16), mode="area")[0], "a red ball"
    result = anyi2v.animate(backbone, image, prompt, case.tracks, config=config, seed=3)
    return hashlib.sha256(result.video.contiguous().numpy().tobytes()).hexdigest()


def main(args: Args) -> int:
    """Make the videos, then compare or write their digests."""
    torch.set_num_threads(1)
    here = {"processor": processor("cpu"), "torch": torch.__version__}
    former = json.loads(RECORDED.read_text()) if not args.record else None
    if former is not None and {key: former[key] for key in here} != here:
        print(f"recorded on {former['processor']} with torch {former['torch']}; bytes differ here in any case")
        return 2
    found = {}
    for name, backbone, config in jobs():
        found[name] = digest(backbone, config)
        same = former is None or former["videos"].get(name) == found[name]
        print(f"{name}: {found[name][:16]} {'' if former is None else 'equal' if same else 'DIFFERENT'}", flush=True)
    if former is None:
        with atomic(RECORDED) as temporary:
            temporary.write_text(json.dumps({**here, "videos": found}, indent=1) + "\n")
        return 0
    return int(found != former["videos"])


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
