"""Objectives of the latent optimisation, which compare features at hook points inside the boxes."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.method.alignment import Alignment, align, reduce
from anyi2v.method.config import AlignmentOptions, MethodConfig
from anyi2v.method.crops import Crops
from anyi2v.method.masks import Cluster
from anyi2v.method.parts import align_in_parts


@runtime_checkable
class Objective(Protocol):
    """A loss computed from the features of one pass."""

    @property
    def points(self) -> Sequence[str]:
        """Hook points that the loss reads, each a spatial feature map; the pass ends at the last of them."""
        ...

    def __call__(
        self, features: Mapping[str, Float[Tensor, "f _ _ _"]], crops: Crops, /
    ) -> Alignment | Float[Tensor, ""]:
        """Compute the loss, alone or together with its masks.

        Args:
            features: by hook point, channels last, in float32; differentiable.
            crops: the boxes on the working lattice.
        """
        ...


class FeatureAlignment:
    """The paper's objective (Eq. 3 to 8): masked principal components of self-attention queries follow the boxes.

    Args:
        config: only `align`, `pca_dim`, `pca_solver` and the fields of `AlignmentOptions` are used.
        generator: for `pca_solver="lowrank"`; by default a new one with a fixed seed.
        cluster: separates the object from the background in a box; by default K-Means as set in `config`.
    """

    def __init__(
        self, config: MethodConfig, generator: torch.Generator | None = None, *, cluster: Cluster | None = None
    ):
        self.config, self.cluster = config, cluster
        self.generator = generator or torch.Generator().manual_seed(0)
        self.points = config.align

    def __call__(self, features: Mapping[str, Float[Tensor, "f _ _ _"]], crops: Crops) -> Alignment:
        """Compute the loss, masks and similarities."""
        config = self.config
        reduced = [
            reduce(features[name], config.pca_dim, solver=config.pca_solver, generator=self.generator)
            for name in self.points
        ]
        options = AlignmentOptions.of(config)
        if len(crops.parts) > 1:
            return align_in_parts(reduced, crops, options, self.cluster)
        return align(reduced, crops, [crops.maps(*x.shape[1:3]) for x in reduced], options, self.cluster)
