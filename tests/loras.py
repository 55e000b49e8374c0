"""Files of LoRAs for tests, in the layouts of all libraries; names are made independently of the reader's."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from anyi2v.backbone.networks import state
from tests import layouts
from tests.networks import tiny_backbone


@cache
def weights() -> dict[str, Tensor]:
    """Of the tiny backbone; nobody may change them."""
    return state(tiny_backbone())


@cache
def shapes() -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in weights().items()}


def part(tensors: dict[str, Tensor], network: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{network}."): x for key, x in tensors.items() if key.startswith(f"{network}.")}


Naming = Callable[[str, str, str], str]


@dataclass
class Layout:
    """How a kind of file names things."""

    modules: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    """Our tensors (one network's) by the names of that library's own modules."""
    network: str
    key: Naming
    """Of a file, from network, module and side (down, up, alpha)."""
    only: str = ""
    """Pattern of the modules that such files cover."""


def kohya(network: str, module: str, side: str) -> str:
    prefix = {"unet": "lora_unet_", "text": "lora_te_"}[network]
    return prefix + module.replace(".", "_") + (".alpha" if side == "alpha" else f".lora_{side}.weight")


def peft(prefix: dict[str, str]) -> Naming:
    names = {"down": ".lora_A.weight", "up": ".lora_B.weight", "alpha": ".alpha"}
    return lambda network, module, side: prefix[network] + module + names[side]


def diffusers(network: str, module: str, side: str) -> str:
    module = {"unet": "unet.", "text": "text_encoder."}[network] + module
    return module + (".alpha" if side == "alpha" else f".lora.{side}.weight")


def processor(prefix: str) -> Naming:
    def name(network: str, module: str, side: str) -> str:
        stem, _, last = module.removesuffix(".0").rpartition(".")
        inner = f"{last}.alpha" if side == "alpha" else f"{last}_lora.{side}.weight"
        return f"{prefix}{stem}.processor.{inner}"

    return name


ATTENTION = r"to_[qkv]|.*\.to_(q|k|v|out\.0)"
PREFIXES = {"unet": "unet.", "text": "text_encoder."}
WRAPPED = {"unet": "base_model.model.", "text": "base_model.model."}
LAYOUTS = {
    "kohya": Layout(dict, "unet", kohya),
    "kohya text": Layout(layouts.to_clip_text, "text", kohya),
    "kohya motion": Layout(layouts.to_animatediff, "unet", kohya),
    "PEFT": Layout(dict, "unet", peft(PREFIXES)),
    "PEFT text": Layout(layouts.to_clip_text, "text", peft(PREFIXES)),
    "PEFT wrapped": Layout(dict, "unet", peft(WRAPPED)),
    "PEFT text wrapped": Layout(lambda x: layouts.to_clip_text(x, prefix=""), "text", peft(WRAPPED)),
    "diffusers": Layout(dict, "unet", diffusers),
    "diffusers text": Layout(layouts.to_clip_text, "text", diffusers),
    "processors": Layout(layouts.spatial, "unet", processor("unet."), ATTENTION),
    "domain adapter": Layout(layouts.spatial, "unet", processor(""), ATTENTION),
    "motion LoRA": Layout(layouts.to_animatediff, "unet", processor("module."), r".*motion_mod.*\.to_(q|k|v|out\.0)"),
    "MotionAdapter": Layout(layouts.to_motion_adapter, "unet", processor("unet."), ATTENTION),
}


@dataclass
class Module:
    """One low-rank update as a file has it."""

    down: Tensor
    up: Tensor
    alpha: float | None

    def delta(self, weight: float, ignored: bool = False) -> Tensor:
        """In float64."""
        scale = weight if self.alpha is None or ignored else weight * self.alpha / len(self.down)
        return scale * (self.up.double().flatten(1) @ self.down.double().flatten(1))


def targets(layout: Layout) -> dict[str, Tensor]:
    """The weights that a LoRA in this layout can touch, by foreign module."""
    theirs = layout.modules(part(weights(), layout.network))
    return {
        key.removesuffix(".weight"): tensor
        for key, tensor in theirs.items()
        if key.endswith(".weight") and tensor.ndim in (2, 4) and "embedding" not in key
        if re.fullmatch(layout.only or ".*", key.removesuffix(".weight"))
    }


@st.composite
def modules(draw: st.DrawFn, layout: Layout) -> dict[str, Module]:
    """Random updates of some modules; pointwise ones in either shape."""
    known = targets(layout)
    chosen = draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=4, unique=True))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kind = draw(st.sampled_from([torch.float32, torch.float16]))
    made = {}
    for name in chosen:
        shape, rank = tuple(known[name].shape), draw(st.integers(1, 4))
        down = torch.randn(rank, *shape[1:], generator=generator).to(kind)
        up = torch.randn(shape[0], rank, *(1,) * (len(shape) - 2), generator=generator).to(kind)
        if shape[2:] in ((), (1, 1)):
            down = down.flatten(1)[(..., *(None,) * draw(st.sampled_from([0, 2])))]
            up = up.flatten(1)[(..., *(None,) * draw(st.sampled_from([0, 2])))]
        alpha = draw(st.none() | st.floats(0.125, 16, width=32))
        made[name] = Module(down, up, alpha)
    return made


def write(path: Path, layout: Layout, made: dict[str, Module], metadata: dict[str, str] | None = None) -> Path:
    tensors = {}
    for name, module in made.items():
        tensors[layout.key(layout.network, name, "down")] = module.down.contiguous()
        tensors[layout.key(layout.network, name, "up")] = module.up.contiguous()
        if module.alpha is not None:
            tensors[layout.key(layout.network, name, "alpha")] = torch.tensor(module.alpha)
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata)
    else:
        torch.save({"state_dict": tensors, "epoch": 3}, path)
    return path


def example(folder: Path, name: str = "kohya", seed: int = 0, alpha: float | None = None) -> Path:
    """A file over all modules of a layout."""
    generator = torch.Generator().manual_seed(seed)
    made = {
        key: Module(
            torch.randn(2, *tensor.shape[1:], generator=generator),
            torch.randn(len(tensor), 2, *(1,) * (tensor.ndim - 2), generator=generator),
            alpha,
        )
        for key, tensor in targets(LAYOUTS[name]).items()
    }
    return write(folder / f"{name}{seed}.safetensors", LAYOUTS[name], made)
