"""Batched principal component analysis; the projection is differentiable, the fit is not."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.errors import InputError

OVERSAMPLING = 16
POWER_ITERATIONS = 4
"""The spectra of attention queries decay slowly, and torch.pca_lowrank's defaults (0 and 2) miss a quarter of the
leading subspace: the relative error of the alignment loss's gradient is 0.2, with these values 1e-5."""


class Basis(NamedTuple):
    """The leading principal components of a set of vectors."""

    mean: Float[Tensor, "*b c"]
    components: Float[Tensor, "*b c m"]
    """Orthonormal columns by decreasing variance; each column's entry of largest magnitude is positive."""
    variance: Float[Tensor, "*b m"]
    """Unbiased variance of the data along each component."""


def fit(
    x: Float[Tensor, "*b n c"],
    m: int,
    *,
    solver: Literal["exact", "lowrank"] = "exact",
    generator: torch.Generator | None = None,
) -> Basis:
    """Compute the `m` leading principal components of n vectors of width c, float32 or float64, without gradient.

    "exact" uses eigenvectors of the c x c covariance. In float32 this loses directions whose standard deviation is
    below about 3e-4 of the largest, which do not affect a projection onto leading components: the gradient of the
    alignment loss is as exact as with an SVD of the data (1e-6), in less than half the time. "lowrank" is the
    randomised `torch.pca_lowrank` (Halko et al. 2011), seeded from `generator`; the global random state is unchanged.

    n centred vectors span at most n - 1 directions: components beyond min(n - 1, c) are zero, so shapes never depend on
    the data. Directions without variance within that limit are arbitrary.

    Raises InputError for m < 1, and for "lowrank" without a generator.
    """
    if m < 1:
        raise InputError(f"PCA with {m} components; choose at least 1")
    x = x.detach()
    mean = x.mean(-2)
    centred = x - mean[..., None, :]
    freedom = max(x.shape[-2] - 1, 1)
    if solver == "exact":
        values, vectors = torch.linalg.eigh(centred.mT @ centred / freedom)
        variance, components = values.flip(-1).clamp(min=0), vectors.flip(-1)
    else:
        singular, components = _lowrank(centred, m, generator)
        variance = singular**2 / freedom
    rank = min(m, x.shape[-2] - 1, x.shape[-1])
    components = torch.nn.functional.pad(_signed(components[..., :rank]), (0, m - rank))
    variance = torch.nn.functional.pad(variance[..., :rank], (0, m - rank))
    return Basis(mean, components, variance)


def project(x: Float[Tensor, "*b n c"], basis: Basis) -> Float[Tensor, "*b n m"]:
    """Return the coordinates of the centred vectors in the basis; differentiable in `x`."""
    return (x - basis.mean[..., None, :]) @ basis.components


def _signed(components: Float[Tensor, "*b c m"]) -> Float[Tensor, "*b c m"]:
    """Fix the sign of eigenvectors, which makes them comparable between solvers and devices."""
    largest = components.gather(-2, components.abs().argmax(-2, keepdim=True))
    return torch.where(largest < 0, -components, components)


def _lowrank(
    centred: Float[Tensor, "*b n c"], m: int, generator: torch.Generator | None
) -> tuple[Float[Tensor, "*b q"], Float[Tensor, "*b c q"]]:
    if generator is None:
        raise InputError("solver 'lowrank' needs random numbers: pass generator=torch.Generator(), or use 'exact'")
    device = centred.device
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # seed only the generator that is restored; torch.manual_seed would reset those of all accelerators
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)
        count = min(m + OVERSAMPLING, *centred.shape[-2:])
        _, singular, components = torch.pca_lowrank(centred, count, center=False, niter=POWER_ITERATIONS)
    return singular, components
