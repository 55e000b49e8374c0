"""Mixing the low frequencies of one tensor with the high ones of another, as FreeTraj and SG-I2V do."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def low_pass(sizes: Sequence[int], cutoffs: Sequence[float], order: int = 4) -> Float[Tensor, "*sizes"]:
    """Butterworth filter in shifted frequency order: 1 / (1 + (sum_i ((2 k_i / n_i - 1) / d_i)^2)^order).

    On odd sizes the middle, zero frequency is half a step off 0, as in both published codes.

    Args:
        sizes: n_i of the axes.
        cutoffs: d_i, the frequency along axis i, in units of the highest, at which half of it passes.
        order: 4 in both published codes.
    """
    ratio = torch.zeros(())
    for size, cutoff in zip(sizes, cutoffs, strict=True):
        axis = 2 * torch.arange(size, dtype=torch.float64) / size - 1
        ratio = ratio[..., None] + (axis / cutoff).square()
    return (1 / (1 + ratio**order)).float()


def mix(low: Float[Tensor, "*n"], high: Float[Tensor, "*n"], lpf: Float[Tensor, "*sizes"]) -> Float[Tensor, "*n"]:
    """IFFT(lpf FFT(low) + (1 - lpf) FFT(high)) over the last axes, as many as `lpf` has; in float32."""
    axes = tuple(range(-lpf.dim(), 0))
    weight = lpf.to(low.device)

    def spectrum(x: Tensor) -> Tensor:
        return torch.fft.fftshift(torch.fft.fftn(x.float(), dim=axes), dim=axes)

    mixed = weight * spectrum(low) + (1 - weight) * spectrum(high)
    return torch.fft.ifftn(torch.fft.ifftshift(mixed, dim=axes), dim=axes).real
