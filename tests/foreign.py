"""Small files in the layouts of public checkpoints, with random contents and without configurations."""

import json
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from anyi2v.backbone.config import BackboneConfig, MotionConfig, TextConfig, UNetConfig, VAEConfig
from anyi2v.backbone.networks import Backbone, build
from anyi2v.checkpoints.foreign import WeightsFile
from anyi2v.cli.convert import Convert
from weights_converters.sources import Source

from .layouts import Tensors, spatial, temporal, to_animatediff, to_clip_text, to_ldm_unet, to_ldm_vae

LAYERS = 1
# widths as small as 32 groups, 8 heads and 64 channels per text head allow
SMALL = BackboneConfig(
    name="small",
    unet=UNetConfig(
        channels=(32, 64), attention=(True, False), layers=LAYERS, context_dim=64, temporal=MotionConfig(mid=True)
    ),
    vae=VAEConfig(channels=(32, 32), layers=1),
    text=TextConfig(width=64, layers=1, heads=1, length=6, vocab_size=20),
    height=128,
    width=128,
)


@cache
def backbone(dtype: torch.dtype = torch.float32) -> Backbone:
    """Random, with every tensor different from what an initialisation would give."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = build(SMALL)
        for network in made.networks.values():
            for parameter in network.parameters():
                parameter.requires_grad_(False).normal_()
            network.to(dtype)
    return made


def networks(dtype: torch.dtype = torch.float32) -> tuple[Tensors, Tensors, Tensors]:
    """UNet, autoencoder and text tower under our names."""
    unet, vae, text = (network.state_dict() for network in backbone(dtype).networks.values())
    return unet, vae, text


def ldm(dtype: torch.dtype = torch.float32, extras: bool = True) -> Tensors:
    """A single file; `extras`: moving average, schedule, position ids."""
    unet, vae, text = networks(dtype)
    parts = {
        "model.diffusion_model.": to_ldm_unet(spatial(unet), LAYERS),
        "first_stage_model.": to_ldm_vae(vae, len(SMALL.vae.channels)),
        "cond_stage_model.transformer.": to_clip_text(text),
    }
    theirs = {prefix + key: tensor for prefix, part in parts.items() for key, tensor in part.items()}
    if extras:
        theirs |= {
            "model_ema.diffusion_modelinput_blocks00weight": torch.zeros(3),
            "model_ema.decay": torch.tensor(0.99),
            "betas": torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2,
            "sqrt_one_minus_alphas_cumprod": torch.zeros(10),
            "first_stage_model.loss.logvar": torch.zeros(1),
            "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(6)[None],
        }
    return theirs


def motion(version: str = "v2", dtype: torch.dtype = torch.float32, positions: bool = True) -> Tensors:
    """AnimateDiff's motion modules."""
    theirs = to_animatediff(temporal(networks(dtype)[0]))
    if version != "v2":
        theirs = {key: tensor for key, tensor in theirs.items() if not key.startswith("mid_block")}
    rows = 24 if version == "v1" else 32
    kept = {key: torch.zeros(1, rows, 32) if key.endswith(".pe") else tensor for key, tensor in theirs.items()}
    return {key: tensor for key, tensor in kept.items() if positions or not key.endswith(".pe")}


def write(tensors: Tensors, path: Path, wrapper: str = "", module: bool = False) -> Path:
    """Writes by the ending of `path`; `wrapper` is a key of a dictionary around the tensors of a pickle."""
    data = {("module." if module else "") + key: tensor.contiguous() for key, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(data, path)
    else:
        extras = {"epoch": 3, "global_step": 7, "animatediff_config": {"a": [1, 2]}}
        torch.save({wrapper: data, **extras} if wrapper else {**data, **extras}, path)
    return path


def options(base: Path, out: Path, **changes: object) -> Convert:
    return Convert(base=base, out=out, **changes)  # pyright: ignore[reportArgumentType]


def manifest(name: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a published file."""
    path = Path(__file__).parent / "manifests" / f"{name}.json"
    return {key: tuple(shape) for key, shape in json.loads(path.read_text()).items()}


def manifests() -> set[str]:
    """Names of all published files."""
    folder = Path(__file__).parent / "manifests"
    return {path.stem for path in folder.glob("*.json")} - {"map_ldm_to_diffusers"}


class Published(WeightsFile):
    """A published file as its manifest describes it; only its numbers are missing."""

    def __init__(self, name: str):
        super().__init__()
        self.path = Path(f"{name}.safetensors")
        self.shapes = manifest(name)
        self.dtypes = {key: "int64" if key.endswith("position_ids") else "float16" for key in self.shapes}
        self.metadata = {}

    def _open(self) -> None:
        raise AssertionError("nobody may read what is not there")

    def _get(self, handle: object, key: str) -> Tensor:
        raise AssertionError("nobody may read what is not there")


def published(name: str) -> Source:
    """The source that a published file would be."""
    file = Published(name)
    return Source(file.path, [file])
