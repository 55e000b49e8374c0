"""Latents without an autoencoder: the principal components of patches."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class PatchPCA(NamedTuple):
    """Linear latents: the first principal components of `factor` x `factor` patches, partly whitened.

    The first component has a standard deviation of one; the others have their share of the first's, raised to the power
    of `1 - whitening`: 0 keeps the spectrum of pixels, in which details emerge from the noise last; 1 makes all equal.
    """

    mean: Float[Tensor, "3 f f"]
    components: Float[Tensor, "c 3 f f"]
    """Orthonormal components."""
    gains: Float[Tensor, " c"]
    """Factors on the coefficients."""

    def encode(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c h2 w2"]:
        """Encode images in [-1, 1]."""
        weight, factor = self.gains[:, None, None, None] * self.components, self.mean.shape[-1]
        bias = -torch.einsum("cijk,ijk->c", weight, self.mean)
        return F.conv2d(images, weight, bias, stride=factor)

    def decode(self, latents: Float[Tensor, "n c h2 w2"]) -> Float[Tensor, "n 3 h w"]:
        """Decode latents to images, approximately in [-1, 1]."""
        rows, columns = latents.shape[-2:]
        weight = self.components / self.gains[:, None, None, None]
        patches = F.conv_transpose2d(latents, weight, stride=self.mean.shape[-1])
        return patches + self.mean.repeat(1, rows, columns)


def fit(images: Float[Tensor, "n 3 h w"], factor: int, channels: int, whitening: float = 1.0) -> PatchPCA:
    """Fit the components of patches of images in [-1, 1]; the largest entry fixes the sign."""
    patches = F.unfold(images, factor, stride=factor).movedim(1, 2).flatten(0, 1).double()
    mean = patches.mean(0)
    variances, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    deviations, vectors = variances.flip(0)[:channels].sqrt(), vectors.flip(1)[:, :channels].T
    vectors = vectors * vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()
    gains = (deviations[0] / deviations) ** whitening / deviations[0]
    shape = 3, factor, factor
    return PatchPCA(mean.view(shape).float(), vectors.view(channels, *shape).float(), gains.float())
