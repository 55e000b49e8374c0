"""Combining low frequencies of one tensor with high frequencies of another, as in FreeTraj and SG-I2V."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def low_pass(sizes: Sequence[int], cutoffs: Sequence[float], order: int = 4) -> Float[Tensor, "*sizes"]:
    """Butterworth filter in shifted frequency order: 1 / (1 + (sum_i ((2 k_i / n_i - 1) / d_i)^2)^order).

    For odd sizes the zero frequency is half a step off centre, as in the published code of both methods.

    Args:
        sizes: n_i of the axes.
        cutoffs: d_i, the frequency along axis i, relative to the highest, at which the filter passes one half.
        order: 4 in the published code of both methods.
    """
    ratio = torch.zeros(())
    for size, cutoff in zip(sizes, cutoffs, strict=True):
        axis = 2 * torch.arange(size, dtype=torch.float64) / size - 1
        ratio = ratio[..., None] + (axis / cutoff).square()
    return (1 / (1 + ratio**order)).float()


def mix(low: Float[Tensor, "*n"], high: Float[Tensor, "*n"], lpf: Float[Tensor, "*sizes"]) -> Float[Tensor, "*n"]:
    """Return IFFT(lpf FFT(low) + (1 - lpf) FFT(high)) over the last `lpf.ndim` axes, in float32."""
    axes = tuple(range(-lpf.dim(), 0))
    weight = lpf.to(low.device)

    def spectrum(x: Tensor) -> Tensor:
        return torch.fft.fftshift(torch.fft.fftn(x.float(), dim=axes), dim=axes)

    mixed = weight * spectrum(low) + (1 - weight) * spectrum(high)
    return torch.fft.ifftn(torch.fft.ifftshift(mixed, dim=axes), dim=axes).real
