"""Reading recordings of the published code (FudanCVL/AnyI2V at 029c901) made with tiny random weights.

A folder of recordings holds one sub-folder per case, `tensors.safetensors` and `meta.json`, whose name begins
with the letter of its kind. Weights and features that a folder lacks are taken from the committed one.
"""

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from anyi2v.backbone.unet import UNet
from anyi2v.method.config import MethodConfig
from anyi2v.method.injection import Injection
from anyi2v.tracks import Track, Tracks
from weights_converters.animatediff import convert_unet, unet_config

COMMITTED = Path(__file__).parent / "data"
HIDDENS = {"ResnetBlock_3": "1.0", "ResnetBlock_4": "1.1", "ResnetBlock_6": "2.0", "ResnetBlock_7": "2.1"}
QUERIES = {"self_attn_0": "1.0", "self_attn_1": "1.1", "self_attn_3": "2.0", "self_attn_4": "2.1"}


@dataclass(frozen=True)
class Case:
    """One recording."""

    folder: Path
    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    @property
    def text(self) -> Tensor:
        """[unconditional, conditional] states."""
        return self.tensors["text"]


def cases(root: Path, letters: str) -> list[Path]:
    """The case folders whose names begin with one of `letters` and an underscore or digit."""
    return sorted(
        path
        for path in root.iterdir()
        if path.is_dir() and path.name[0] in letters and (path.name[1:2] in "_" or path.name[1:2].isdigit())
    )


def load_case(folder: Path) -> Case:
    """Tensors and meta data of a case."""
    tensors = load_file(folder / "tensors.safetensors")
    return Case(folder, tensors, json.loads((folder / "meta.json").read_text()))


def latents(x: Tensor) -> Tensor:
    """Recorded `b c f h w` as our `b f c h w`, or back."""
    return x.transpose(1, 2)


def _file(root: Path, name: str) -> Path:
    return root / name if (root / name).exists() else COMMITTED / name


@cache
def unet(root: Path, version: str) -> UNet:
    """The tiny UNet with AnimateDiff's v1, v2 or v3 temporal layout; its weights pass through the converter."""
    state = load_file(_file(root, "tiny_unet_v3.f16.safetensors"))
    config = json.loads(_file(root, "tiny_unet_v3.json").read_text())["unet_config"]
    if version == "v2":
        state |= load_file(_file(root, "tiny_unet_v2_extra.f16.safetensors"))
        config = json.loads(_file(root, "tiny_unet_v2.json").read_text())["unet_config"]
    if version == "v1":
        config |= {"use_inflated_groupnorm": False}
    # the recordings were made with the class default of 24 positions
    ours = unet_config(config, max_frames=24)
    network = UNet(ours)
    network.load_state_dict(convert_unet({key: value.float() for key, value in state.items()}, ours))
    return network.eval().requires_grad_(False)


def recorded_features(case: Case, root: Path) -> dict[str, Tensor]:
    """The features of the inversion, from the case itself or from a B case, under our names and axes."""
    t = case.meta.get("inversion_timestep", 201)
    source = case.tensors
    if f"self_attn_0_{t}.q" not in source:
        found = cases(root, "B") or cases(COMMITTED, "B")
        source = load_case(found[0]).tensors
    features = {}
    for name, place in HIDDENS.items():
        i, j = place.split(".")
        features[f"up_blocks.{i}.resnets.{j}.hidden"] = latents(source[f"{name}_{t}.conv_fea"])
    for name, place in QUERIES.items():
        i, j = place.split(".")
        height, width = features[f"up_blocks.{i}.resnets.{j}.hidden"].shape[-2:]
        query = source[f"{name}_{t}.q"].unflatten(1, (height, width))
        features[f"up_blocks.{i}.attentions.{j}.query"] = query[:, None]
    return features


def method(case: Case) -> MethodConfig:
    """Recipe `official` with the hyper-parameters of the recording."""
    meta, default = case.meta, MethodConfig.official()
    return replace(
        default,
        guidance_scale=meta.get("guidance_scale", default.guidance_scale),
        lr=meta.get("lr", default.lr),
        weight_decay=meta.get("weight_decay_of_AdamW", default.weight_decay),
        pca_dim=meta.get("PCA_dim"),
        patch=meta.get("debias_patch_size", default.patch),
        inject_steps=meta.get("load_feature_step", default.inject_steps - 1) + 1,
        optimise_steps=meta.get("opt_step", default.optimise_steps - 1) + 1,
        iterations=meta.get("opt_iters", 1),
        steps=meta.get("steps", default.steps),
    )


def injection(case: Case, root: Path) -> Injection:
    """The injection that the recordings were made with."""
    config = method(case)
    return Injection(
        recorded_features(case, root),
        hiddens=config.inject_hidden,
        queries=config.inject_query,
        share_kv=config.share_kv,
        debias=config.debias,
        patch=config.patch,
    )


def tracks(case: Case, latent_size: tuple[int, int]) -> Tracks:
    """Boxes (recorded as top, left, bottom, right) and points (recorded as y, x from the first corner)."""
    objects = []
    for o, (boxes, points) in enumerate(zip(case.meta["boxes_obj_frame_tlbr"], case.meta["query_points"], strict=True)):
        top, left = boxes[0][:2]
        objects.append(
            Track(
                name=f"object {o}",
                boxes=tuple((b[1], b[0], b[3], b[2]) for b in boxes),
                points=tuple((left + x, top + y) for y, x in points),
            )
        )
    pixels = case.meta["vae_scale_factor"]
    return Tracks(latent_size[1] * pixels, latent_size[0] * pixels, tuple(objects))


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Norm of the difference over the norm of the reference, in float64."""
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()
