"""Architecture and initial weights of the micro backbones and their sparse control network."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from anyi2v.backbone.config import (
    BackboneConfig,
    FactorisedConfig,
    MotionConfig,
    RotaryConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
)
from anyi2v.backbone.networks import Backbone, build, channels_last, state
from anyi2v.backbone.sparse_config import SparseControlConfig
from anyi2v.backbone.sparse_control import SparseControlNetwork
from anyi2v.checkpoints.checkpoint import load
from anyi2v.checkpoints.header import read_config
from anyi2v.errors import InputError
from anyi2v.micro.training.options import Args
from anyi2v.micro.world.modalities import WORDS

CONFIG = BackboneConfig(
    name="micro",
    unet=UNetConfig(
        channels=(32, 64, 64, 64),
        attention=(False, True, True, False),
        context_dim=64,
        heads=4,
        groups=16,
        temporal=MotionConfig(heads=4, groups=16, max_frames=32),
    ),
    # one norm group: groups of few channels would remove absolute colour
    vae=VAEConfig(channels=(16, 32), layers=1, groups=1, scale=1.0),
    text=TextConfig(width=64, layers=2, heads=4, mlp_ratio=2.0, length=16, vocab_size=len(WORDS), words=WORDS),
    height=64,
    width=64,
    frames=8,
    fps=8,
    # chosen on 14 to 28 cases with seeds from 30000, which are not the benchmark's default
    method={
        "steps": 8,
        "guidance_scale": 3.0,
        "inversion_stride": 10,
        "patch": 0,
        "inject_steps": 8,
        "align": [f"up_blocks.{block}.attentions.{layer}.query" for block, layer in ((1, 1), (2, 0), (2, 1))],
        "optimise_steps": 4,
        "iterations": 3,
        "lr": 0.08,
        "pca_dim": 32,
        "mask": "none",
        "remove_update_mean": True,
    },
)


def architecture(args: Args, config: BackboneConfig = CONFIG) -> BackboneConfig:
    """Return the configuration to train: `config`, or that of `args.spatial`, with the requested temporal layers."""
    config = config if args.spatial is None else read_config(args.spatial)
    unet = config.unet
    match args.temporal:
        case "rotary":
            # LaVie's norms have statistics over the clip
            temporal = RotaryConfig(heads=unet.heads, rotary_dims=min(unet.channels) // unet.heads)
            return replace(config, name="micro-lavie", unet=replace(unet, temporal=temporal, norm_over="clip"))
        case "factorised":
            width = min(unet.channels) // unet.heads
            temporal = FactorisedConfig(head_dim=16, groups=unet.groups, stem_heads=unet.heads, stem_head_dim=width)
            return replace(config, name="micro-vc2", unet=replace(unet, temporal=temporal))
        case "motion_modules":
            return config


@dataclass
class Controlled(Backbone):
    """A finished backbone and the sparse control network that is trained for it."""

    control: SparseControlNetwork | None = None

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Those of the backbone, and "control"."""
        return super().networks | {"control": sparse_control(self)}

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Controlled":
        """Moves the networks in place."""
        super().to(device, dtype)
        sparse_control(self).to(device, dtype)
        return self


def sparse_control(backbone: Backbone) -> SparseControlNetwork:
    """The sparse control network beside a backbone in training."""
    assert isinstance(backbone, Controlled) and backbone.control is not None
    return backbone.control


def controlled(backbone: Backbone) -> Controlled:
    """A finished backbone with a sparse control network that begins as a copy of its way down.

    The condition enters by the weights of the UNet's first convolution; those of the mask are zero.
    """
    config = backbone.config
    motion = config.unet.temporal
    if not isinstance(motion, MotionConfig):
        raise InputError(f"backbone {config.name} has no motion modules, of which a sparse control network is a copy")
    unet = replace(config.unet, temporal=replace(motion, attentions=1))
    control = SparseControlNetwork(SparseControlConfig(name=f"{config.name}-sparsectrl", unet=unet))
    theirs = backbone.unet.state_dict()
    with torch.no_grad():
        for key, tensor in control.state_dict().items():
            if key in theirs:
                tensor.copy_(theirs[key])
        entry = control.condition_embedding.state_dict()
        entry["weight"].zero_()[:, : config.unet.latent_channels].copy_(theirs["conv_in.weight"])
        entry["bias"].zero_()
        control.bias.copy_(theirs["conv_in.bias"])
    channels_last(control)
    return Controlled(config, backbone.unet, backbone.vae, backbone.text, control=control)


def initial(args: Args, config: BackboneConfig = CONFIG) -> Backbone:
    """Create the backbone before training, with random weights except those from `args.spatial` and `args.start`.

    With `args.control`, return the finished backbone `args.spatial` with a new sparse control network.
    """
    torch.manual_seed(0)  # the same weights in every process
    if args.control:
        return controlled(load(args.spatial or "micro"))
    backbone = build(architecture(args, config))
    with torch.no_grad():
        for source in filter(None, (args.spatial, args.start)):
            theirs = state(load(source))
            for key, tensor in state(backbone).items():
                if source == args.start or "temporal" not in key:
                    tensor.copy_(theirs[key])
    return backbone
