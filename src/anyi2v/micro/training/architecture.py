"""Architecture and initial weights of the micro backbones."""

from dataclasses import replace

import torch

from anyi2v.backbone.config import (
    BackboneConfig,
    FactorisedConfig,
    MotionConfig,
    RotaryConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
)
from anyi2v.backbone.networks import Backbone, build, state
from anyi2v.checkpoints.checkpoint import load
from anyi2v.checkpoints.header import read_config
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


def architecture(args: Args) -> BackboneConfig:
    """Return the configuration to train: `CONFIG`, or that of `args.spatial`, with the requested temporal layers."""
    config = CONFIG if args.spatial is None else read_config(args.spatial)
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


def initial(args: Args) -> Backbone:
    """Create the backbone before training, with random weights except those from `args.spatial` and `args.start`."""
    torch.manual_seed(0)  # the same weights in every process
    backbone = build(architecture(args))
    with torch.no_grad():
        for source in filter(None, (args.spatial, args.start)):
            theirs = state(load(source))
            for key, tensor in state(backbone).items():
                if source == args.start or "temporal" not in key:
                    tensor.copy_(theirs[key])
    return backbone
