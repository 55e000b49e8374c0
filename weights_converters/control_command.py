"""Conversion of a sparse control network from the published file to ours, one tensor at a time."""

import json
import math
from dataclasses import fields
from importlib.metadata import version

import torch

from anyi2v.backbone.sparse_config import SparseControlConfig
from anyi2v.backbone.sparse_control import SparseControlNetwork
from anyi2v.checkpoints.checkpoint import write
from anyi2v.cli.convert import Convert
from anyi2v.errors import CheckpointError, InputError
from anyi2v.files import with_home
from weights_converters.account import account
from weights_converters.command import DTYPES, Shapes, Tensors, check_space, check_target, problems
from weights_converters.keymap import refuse
from weights_converters.parts import control_config, read_part

TAKEN = ("sparse_control", "out", "name", "dtype")


def convert_control(options: Convert) -> str:
    """Convert `options.sparse_control` and return a summary.

    Raises:
        InputError: a path is unusable, or an option does not apply to sparse control networks.
        CheckpointError: the source is damaged, of another kind, or its tensors do not match the network.
        ResourceError: the disk is too full, or the output cannot be written.
    """
    options = with_home(options)
    path, out = options.sparse_control, options.out
    if path is None or out is None:
        raise InputError("convert needs both --sparse-control and --out")
    for option in fields(options):
        if option.name not in TAKEN and getattr(options, option.name) != option.default:
            flag = option.name.replace("_", "-")
            raise InputError(f"--{flag} is not for --sparse-control, which is converted by itself; leave it out")
    check_target(out, [path])
    part = read_part("control", path, "--sparse-control")
    config = control_config(part, options.name or out.stem)
    shapes = control_shapes(config)
    refuse(problems(part, shapes), f"{path} ({part.finding}) does not fit the sparse control network")
    dtype = DTYPES[options.dtype]
    check_space(out, sum(map(math.prod, shapes.values())) * dtype.itemsize)
    metadata = {"sources": json.dumps(part.source.hashes()), "converter": f"anyi2v {version('anyi2v')}"}
    tensors = Tensors({key: (part, key) for key in shapes}, {})
    try:
        write(tensors, config, out, dtype=dtype, metadata=metadata, shapes=shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    done = f"{out}: {len(shapes)} tensors, {out.stat().st_size:,} bytes"
    return f"{done}\n{account({'control': part})}"


def control_shapes(config: SparseControlConfig) -> Shapes:
    """Return keys and shapes of the tensors of a sparse control network."""
    with torch.device("meta"):
        return {key: tuple(x.shape) for key, x in SparseControlNetwork(config).state_dict().items()}
