"""Files of sparse control networks: one .safetensors each, with the configuration in its metadata."""

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
    """Write a file that `load_control` reads; the arguments are those of `checkpoint.save`."""
    write(network.state_dict(), network.config, path, dtype=dtype, metadata=metadata)


def read_control_config(path_or_name: str | Path) -> SparseControlConfig:
    """Read the configuration from a sparse control network's file; raises the errors of `load_control`."""
    path = resolve_control(path_or_name)
    return parsed(path, read_header(path), SparseControlConfig.from_json, control=True)


@torch.inference_mode(False)
def load_control(
    path_or_name: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> SparseControlNetwork:
    """Load a sparse control network for inference: in `eval()` mode, without gradients for its parameters.

    Args:
        path_or_name: file written by `save_control` or `anyi2v convert`, or the name of a shipped network.
        device: device of the network.
        dtype: data type of its parameters.

    Raises:
        InputError: neither a file nor a shipped name.
        CheckpointError: the file is damaged, is not a sparse control network, or its tensors do not match its
            configuration.
    """
    path = resolve_control(path_or_name)
    header = read_header(path)
    with torch.device("meta"):
        network = SparseControlNetwork(parsed(path, header, SparseControlConfig.from_json, control=True))
    check_tensors(path, header.shapes, {key: tuple(x.shape) for key, x in network.state_dict().items()})
    with safe_open(path, framework="pt", device=str(device)) as file:
        # copied to have the alignment of torch's own memory
        tensors = {key: file.get_tensor(key).to(dtype, copy=True) for key in network.state_dict()}
    network.load_state_dict(tensors, assign=True)
    channels_last(network)
    return network.eval().requires_grad_(False)
