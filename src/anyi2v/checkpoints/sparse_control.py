"""Sparse control networks and their files: one .safetensors each, with its configuration in the metadata."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from anyi2v.backbone.networks import channels_last
from anyi2v.backbone.sparse_config import SparseControlConfig
from anyi2v.backbone.sparse_control import SparseControlNetwork
from anyi2v.checkpoints.checkpoint import check_tensors, write
from anyi2v.checkpoints.header import parsed, read_header, resolve_control


def save_control(
    network: SparseControlNetwork,
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a file that `load_control` reads; arguments are those of `checkpoint.save`."""
    write(network.state_dict(), network.config, path, dtype=dtype, metadata=metadata)


def read_control_config(path_or_name: str | Path) -> SparseControlConfig:
    """The configuration in a file of a sparse control network; raises as `load_control` does."""
    path = resolve_control(path_or_name)
    return parsed(path, read_header(path), SparseControlConfig.from_json, control=True)


@torch.inference_mode(False)
def load_control(
    path_or_name: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> SparseControlNetwork:
    """A sparse control network from its file, for inference: `eval()` and without gradients of the parameters.

    Args:
        path_or_name: a file that `save_control` or `anyi2v convert` wrote, or the name of a shipped network.
        device: where the network shall be.
        dtype: of its parameters.

    Raises:
        InputError: neither a file nor a shipped name.
        CheckpointError: not the file of a sparse control network, damaged, or its tensors are not those of its
            configuration.
    """
    path = resolve_control(path_or_name)
    header = read_header(path)
    with torch.device("meta"):
        network = SparseControlNetwork(parsed(path, header, SparseControlConfig.from_json, control=True))
    check_tensors(path, header.shapes, {key: tuple(x.shape) for key, x in network.state_dict().items()})
    with safe_open(path, framework="pt", device=str(device)) as file:
        # copied, to lie aligned as all of torch's memory
        tensors = {key: file.get_tensor(key).to(dtype, copy=True) for key in network.state_dict()}
    network.load_state_dict(tensors, assign=True)
    channels_last(network)
    return network.eval().requires_grad_(False)
