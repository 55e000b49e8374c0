"""A family of temporal layers from outside: registered by name, then saved, loaded and animated."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from anyi2v.backbone.call import Call
from anyi2v.backbone.config import TEMPORAL_KINDS, MotionConfig
from anyi2v.backbone.designs import make_design, register_family
from anyi2v.backbone.networks import Backbone
from anyi2v.backbone.slots import Design, Site, Slot, Temporal
from anyi2v.backbone.unet import UNet
from anyi2v.checkpoints.checkpoint import load, save
from anyi2v.errors import CheckpointError, InputError
from anyi2v.pipeline import animate

from .networks import SHORT, TINY, tiny_backbone


@dataclass(frozen=True)
class ShiftConfig:
    kind: str = "gated shift"


class Shift(Temporal):
    """A temporal shift module (Lin et al. 2019) with a learned gate."""

    def __init__(self, site: Site):
        super().__init__(site.name)
        self.gate = nn.Parameter(torch.full((site.channels,), 0.5))

    def mix(self, x: Tensor, call: Call) -> Tensor:
        clip = x.unflatten(0, (-1, call.frames))
        return (clip + self.gate[:, None, None] * clip.roll(1, 1)).flatten(0, 1)


class Shifts(Design):
    def after_layer(self, site: Site) -> Slot:
        return Shift(site)


@pytest.fixture(autouse=True)
def _registered() -> None:
    register_family(ShiftConfig, Shifts)


def backbone() -> Backbone:
    made = tiny_backbone()
    config = replace(made.config, unet=replace(TINY, temporal=ShiftConfig()))
    with torch.random.fork_rng():
        unet = UNet(config.unet).eval().requires_grad_(False)
    return Backbone(config, unet, made.vae, made.text)


def test_saved_and_loaded_it_makes_the_same_video(tmp_path: Path) -> None:
    ours = backbone()
    save(ours, tmp_path / "shift.safetensors")
    again = load(tmp_path / "shift.safetensors")
    assert again.config == ours.config and isinstance(again.config.unet.temporal, ShiftConfig)
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    first, second = (animate(b, image, "a red ball", None, config=SHORT).video for b in (ours, again))
    # loaded networks have their channels last, where PyTorch's kernels add up in another order
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)
    assert "up_blocks.0.temporals.0" in ours.unet.temporal_names


def test_an_unknown_family_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(backbone(), tmp_path / "shift.safetensors")
    monkeypatch.delitem(TEMPORAL_KINDS, "gated shift")
    with pytest.raises(CheckpointError, match="unknown kind 'gated shift'; call register_family"):
        load(tmp_path / "shift.safetensors")
    monkeypatch.setattr(ShiftConfig, "kind", "shifts")
    with pytest.raises(InputError, match="unknown kind 'other'"):
        make_design(ShiftConfig(kind="other"))


def test_names_are_not_taken_from_another_family() -> None:
    @dataclass(frozen=True)
    class Other:
        kind: str = "motion_modules"

    with pytest.raises(InputError, match=r"the kind 'motion_modules' is registered already: .*MotionConfig"):
        register_family(Other, Shifts)
    with pytest.raises(InputError, match="must be a dataclass with a default kind"):
        register_family(Shift, Shifts)  # type: ignore[arg-type]
    assert TEMPORAL_KINDS["motion_modules"] is MotionConfig
