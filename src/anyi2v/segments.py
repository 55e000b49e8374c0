"""Segments of a condition image: K-Means over the reduced self-attention queries of its inversion (Sections 3.2, 3.4).

Shows what the method can distinguish in an image before any track is drawn.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from anyi2v.backbone.networks import Backbone
from anyi2v.errors import InputError, plural
from anyi2v.method.alignment import feature_map, reduce
from anyi2v.method.config import MethodConfig
from anyi2v.method.noise import stream
from anyi2v.numerics.kmeans import kmeans
from anyi2v.pipeline import invert_images
from anyi2v.timing import Progress
from anyi2v.tracks import Track, Tracks
from anyi2v.tracks.masks import bounding_box


def segments(
    backbone: Backbone,
    image: Float[Tensor, "3 h w"],
    prompt: str = "",
    *,
    clusters: int = 4,
    config: MethodConfig | None = None,
    progress: Progress | bool = False,
) -> Int[Tensor, "h w"]:
    """Segment a condition image; each pixel has the number of its segment, 0 for the largest.

    The queries of `config.inject_query` at t_alpha are reduced by PCA, upsampled to twice the latent grid, normalised
    to unit length, concatenated over the layers and clustered.

    Args:
        backbone: from `anyi2v.load`.
        image: the condition, in [0, 1], of a size that the backbone can generate.
        prompt: describes the image.
        clusters: number of segments, 2 or more.
        config: by default `backbone.method()`.
        progress: as for `animate`.

    Raises InputError for an unusable image or number of clusters, or if `config` injects no queries.
    """
    config = config or backbone.method()
    if not config.inject_query:
        raise InputError("inject_query=() leaves no queries to cluster; name a layer's query")
    height, width = image.shape[1:]
    lattice = check_clusters(clusters, backbone.config.vae.factor, height, width)
    queries = replace(config, inject_hidden=(), share_kv=())
    (features,) = invert_images(backbone, [image], [prompt], config=queries, progress=progress)
    cells = [_cells(feature_map(name, features[name]), config, lattice) for name in config.inject_query]
    labels = kmeans(torch.cat(cells, -1), clusters).labels.view(lattice)
    sizes = torch.bincount(labels.flatten(), minlength=clusters)
    rank = sizes.argsort(descending=True, stable=True).argsort()
    large = F.interpolate(rank[labels][None, None].float(), size=(height, width), mode="nearest")
    return large[0, 0].long().cpu()


def check_clusters(clusters: int, factor: int, height: int, width: int) -> tuple[int, int]:
    """Return rows and columns of the lattice that is clustered, for an image in pixels and the autoencoder's factor.

    Raises InputError for fewer than 2 segments, or more than cells.
    """
    rows, columns = 2 * (height // factor), 2 * (width // factor)
    if not 2 <= clusters <= rows * columns:
        found = plural(clusters, "segment")
        raise InputError(f"{found} requested; choose 2 to {rows * columns}, at most one per cell of the lattice")
    return rows, columns


def _cells(x: Float[Tensor, "1 _ _ c"], config: MethodConfig, lattice: tuple[int, int]) -> Float[Tensor, "n m"]:
    """Return a unit feature vector for each lattice cell."""
    reduced = reduce(x, config.pca_dim, solver=config.pca_solver, generator=stream(0, "pca"))
    large = F.interpolate(reduced.movedim(-1, 1), size=lattice, mode="bilinear", align_corners=False)
    return F.normalize(large[0].flatten(1).T, dim=-1)


def segment_tracks(labels: Int[Tensor, "h w"]) -> Tracks:
    """Turn each segment into a static object with its mask and bounding box."""
    height, width = labels.shape
    masks = [(labels == number).numpy() for number in range(int(labels.max()) + 1)]
    objects = (
        Track(f"segment {number}", (bounding_box(mask, width, height),), mask=mask)
        for number, mask in enumerate(masks, 1)
        if mask.any()
    )
    return Tracks(width, height, tuple(objects))
