"""Classification of pictures by features of a network trained on photographs."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


@torch.no_grad()
def features(network: nn.Module, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
    """Return normalised features of images in [0, 1]."""
    return F.normalize(torch.cat([network(part) for part in images.split(16)]), dim=1)


def nearest(
    network: nn.Module, images: Float[Tensor, "n 3 h w"], renders: Float[Tensor, "m 3 h w"], objects: Int[Tensor, " m"]
) -> Int[Tensor, " n"]:
    """Return, for each image, the object of the render with the nearest features."""
    return objects[(features(network, images) @ features(network, renders).T).argmax(1)]
