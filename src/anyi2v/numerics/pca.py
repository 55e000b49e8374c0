"""Principal component analysis, batched. The fit carries no gradient; the projection does."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.errors import InputError

OVERSAMPLING = 16
POWER_ITERATIONS = 4
"""The spectra of attention queries fall slowly, and torch.pca_lowrank's defaults (0 and 2) miss a quarter of
the leading subspace on them: the gradient of the alignment loss is off by 0.2, with these two by 1e-5."""


class Basis(NamedTuple):
    """The leading principal components of some vectors."""

    mean: Float[Tensor, "*b c"]
    components: Float[Tensor, "*b c m"]
    """Orthonormal columns by falling variance; each column's entry of largest magnitude is positive."""
    variance: Float[Tensor, "*b m"]
    """Unbiased variance of the data along each component."""


def fit(
    x: Float[Tensor, "*b n c"],
    m: int,
    *,
    solver: Literal["exact", "lowrank"] = "exact",
    generator: torch.Generator | None = None,
) -> Basis:
    """The `m` leading principal components of n vectors of width c; float32 or float64, no gradient.

    "exact" takes eigenvectors of the c x c covariance. In float32 that loses the directions whose standard
    deviation is below about 3e-4 of the largest, which no projection onto leading components notices: the
    gradient of the alignment loss is as exact as with an SVD of the data (1e-6), at less than half its time.
    "lowrank" is the randomised `torch.pca_lowrank` (Halko et al. 2011), seeded from `generator`; the global
    random state is left as it was.

    n centred vectors span at most n - 1 directions: components beyond min(n - 1, c) are zero, so the shapes
    never depend on the data. Directions of no variance within that limit are arbitrary.

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
    """Coordinates of the centred vectors in the basis; differentiable in `x`."""
    return (x - basis.mean[..., None, :]) @ basis.components


def _signed(components: Float[Tensor, "*b c m"]) -> Float[Tensor, "*b c m"]:
    """Eigenvectors are known up to their sign; this makes them comparable between solvers and devices."""
    largest = components.gather(-2, components.abs().argmax(-2, keepdim=True))
    return torch.where(largest < 0, -components, components)


def _lowrank(
    centred: Float[Tensor, "*b n c"], m: int, generator: torch.Generator | None
) -> tuple[Float[Tensor, "*b q"], Float[Tensor, "*b c q"]]:
    if generator is None:
        raise InputError("solver 'lowrank' draws random numbers: pass generator=torch.Generator(), or use 'exact'")
    device = centred.device
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # only the generator that is restored is seeded; torch.manual_seed would reset every accelerator's
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)
        count = min(m + OVERSAMPLING, *centred.shape[-2:])
        _, singular, components = torch.pca_lowrank(centred, count, center=False, niter=POWER_ITERATIONS)
    return singular, components
