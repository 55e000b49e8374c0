"""Recordings of LaVie and VideoCrafter2 with tiny random weights: folders `lavie` and `videocrafter2`.

Any further file of these kinds is taken: other frame counts, odd sizes, other frame rates, other bypasses. A file's
name tells which temporal layers are off: `bypass` all, `bypass_attn_only` those with attention, `keep_init_attn`
all but the one after the stem.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor

from anyi2v.backbone.lavie import buckets
from anyi2v.backbone.text import TextTower, tokenize
from anyi2v.backbone.unet import UNet
from anyi2v.diffusion import (
    CLEAN,
    Step,
    alphas_cumprod,
    ddim_step,
    guided,
    level,
    sampling_pairs,
    sampling_timesteps,
    transport,
)
from anyi2v.taps import Recorder
from weights_converters import lavie, videocrafter
from weights_converters.keymap import convert

from .conftest import golden_dir

# the references' own rounding is 4e-6, their outputs have a standard deviation of 0.6; as suggested with them
LIMIT = 1e-4
FAMILIES = ("lavie", "videocrafter2")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "recording" not in metafunc.fixturenames:
        return
    root = golden_dir(metafunc.config)
    files = [p for name in FAMILIES for p in sorted((root / name).glob("*.safetensors")) if "in.sample" in keys(p)]
    # their weights, 22 MB, are not in the repository: `make test` skips them, `make golden DIR=...` runs them
    skip = pytest.mark.skip(reason=f"the golden folder has no {' or '.join(FAMILIES)}")
    ids = [f"{p.parent.name}-{p.stem}" for p in files]
    metafunc.parametrize("recording", files or [pytest.param(None, marks=skip)], ids=ids or ["none"])


def keys(path: Path) -> set[str]:
    return set(load_file(path))


@cache
def network(folder: Path) -> UNet:
    """The family's tiny UNet; its weights pass through the converter."""
    data = json.loads((folder / "config.json").read_text())
    weights = {key: value.float() for key, value in load_file(folder / "weights.safetensors").items()}
    if folder.name == "lavie":
        config, rules = lavie.unet_config(data), lavie.UNET
    else:
        config, rules = videocrafter.unet_config(data), videocrafter.rules(weights, "unet")
    with torch.device("meta"):
        targets = {key: tuple(tensor.shape) for key, tensor in UNet(config).state_dict().items()}
    unet = UNet(config)
    unet.load_state_dict(convert(weights, rules, targets)[0])
    return unet.eval().requires_grad_(False)


def temporal_layers(name: str, unet: UNet) -> bool | list[str]:
    """What the name of a file says about the temporal layers."""
    if "bypass" not in name:
        return True
    if "attn_only" in name:
        return [layer for layer in unet.temporal_names if ".resnets." in layer]
    return ["stem_temporal"] if "keep_init_attn" in name else False


def place(key: str, unet: UNet) -> str | None:
    """Our hook point of a recorded tensor; None for what is looked at with forward hooks."""
    last = unet.config.layers
    names = {
        "conv_in.out": "conv_in",
        "init_attn.out": "stem_temporal",
        "mid_block.out": "mid_block.resnets.1",
        "up_blocks.3.out": f"up_blocks.3.{'temporals' if unet.config.fps_embedding else 'attentions'}.{last}",
        "down_blocks.3.resnets.1+attn.out": "down_blocks.3.resnets.1",
    }
    if key in names:
        return names[key]
    if key.startswith(("in.", "out.")) or "attn_temp" in key or "temporal" in key:
        return None
    if key.endswith("+attn.out"):
        return key.removesuffix("+attn.out").replace("resnets", "temporals")
    stem, part = key.rsplit(".", 1)
    if part == "residual":
        return f"{stem}.hidden"
    if key.endswith(".attn1.q"):
        return key.replace(".attn1.q", ".query")
    return f"{stem}.upsamplers.0" if stem.count(".") == 1 else stem


def recorded_layout(ours: Tensor, like: Tensor, key: str) -> Tensor:
    """Our tensor in the layout of the recorded one."""
    if key.endswith(".attn1.q"):
        return rearrange(ours, "b f h w c -> (b f) (h w) c")
    return ours.transpose(1, 2) if like.ndim == 5 else ours.flatten(0, 1)


@torch.no_grad()
def test_forwards_equal_the_recorded_ones(recording: Path) -> None:
    unet, tensors = network(recording.parent), load_file(recording)
    places = {key: place(key, unet) for key in tensors}
    recorder = Recorder([name for name in places.values() if name])
    text = tensors["in.encoder_hidden_states" if recording.parent.name == "lavie" else "in.context"]
    out = unet(
        tensors["in.sample"].transpose(1, 2),
        tensors["in.timestep"],
        text,
        fps=float(tensors["in.fps"][0]) if "in.fps" in tensors else None,
        temporal=temporal_layers(recording.stem, unet),
        tap=recorder,
    )
    assert (out.transpose(1, 2) - tensors["out.sample"]).abs().max() <= LIMIT
    compared = 0
    for key, name in places.items():
        if name is None or name not in recorder.seen:
            continue
        ours = recorded_layout(recorder.seen[name], tensors[key], key)
        # inner activations have larger values, and errors in proportion
        assert (ours - tensors[key]).abs().max() <= LIMIT * max(1.0, tensors[key].std().item()), key
        compared += 1
    assert compared >= len(places) - 8 - sum(name is None for name in places.values())


def watched(unet: UNet, run: Callable[[], object], modules: Mapping[str, str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output of the modules with these paths while `run` runs."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Callable[..., None]:
        def note(module: object, args: tuple[Tensor, ...], out: Tensor) -> None:
            seen[name] = (args[0], out)

        return note

    handles = [unet.get_submodule(path).register_forward_hook(hook(name)) for name, path in modules.items()]
    run()
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
def test_temporal_layers_equal_the_recorded_ones(root: Path) -> None:
    folder = family(root, "lavie")
    tensors, unet = load_file(folder / "video_on.safetensors"), network(folder)
    block = "up_blocks.1.attentions.1.transformer_blocks.0.temporal"
    seen = watched(
        unet,
        lambda: unet(tensors["in.sample"].transpose(1, 2), tensors["in.timestep"], tensors["in.encoder_hidden_states"]),
        {"in": f"{block}.norm", "out": f"{block}.attn.to_out"},
    )
    for end in ("in", "out"):
        ours = rearrange(seen[end][1], "b f h w c -> (b h w) f c")
        assert (ours - tensors[f"up_blocks.1.attentions.1.attn_temp.{end}"]).abs().max() <= LIMIT


@torch.no_grad()
def test_temporal_convolutions_and_transformers_equal_the_recorded_ones(root: Path) -> None:
    folder = family(root, "videocrafter2")
    tensors, unet = load_file(folder / "video_on.safetensors"), network(folder)
    fps = float(tensors["in.fps"][0])
    modules = {"resnets.1.temporal_conv": "resnets.1.temporal", "temporal_transformers.1": "temporals.1"}
    seen = watched(
        unet,
        lambda: unet(tensors["in.sample"].transpose(1, 2), tensors["in.timestep"], tensors["in.context"], fps=fps),
        {name: f"up_blocks.1.{path}" for name, path in modules.items()},
    )
    frames = tensors["in.sample"].shape[2]
    for name, both in seen.items():
        for end, ours in zip(("in", "out"), both, strict=True):
            theirs = tensors[f"up_blocks.1.{name}.{end}"]
            assert (rearrange(ours, "(b f) c h w -> b c f h w", f=frames) - theirs).abs().max() <= LIMIT, (name, end)


def family(root: Path, name: str) -> Path:
    """The family's folder, or a skip that names it."""
    if not (root / name).exists():
        pytest.skip(f"the golden folder has no {name}")
    return root / name


def test_relative_positions_equal_the_recorded_ones(root: Path) -> None:
    tensors = load_file(family(root, "lavie") / "relpos.safetensors")
    table = tensors["bucket_i_j"]
    assert torch.equal(buckets(len(table), 32, 32), table.long())
    bias = tensors["bias_h_i_j_n20"]
    ours = tensors["weight"][buckets(bias.shape[1], 32, 32)].permute(2, 0, 1)
    assert torch.equal(ours, bias)


# one step in float32 on latents of unit variance; x0 is larger by 1 / signal, up to 160 at the noisiest timestep
STEP = 2e-6


@pytest.mark.parametrize("sampler", ["ddim50", "ddpm50"])
def test_lavie_samplers_equal_the_recorded_ones(root: Path, sampler: str) -> None:
    folder = family(root, "lavie")
    tensors, meta = load_file(folder / "sampler.safetensors"), json.loads((folder / "sampler.json").read_text())
    schedule, eta = lavie.SCHEDULE, 0.0
    if sampler == "ddpm50":
        # ancestral sampling is DDIM with eta 1 (Song et al. 2021, section 4.1)
        schedule, eta = dataclasses.replace(schedule, steps_offset=0, final_alpha_one=True), 1.0
    torch.testing.assert_close(alphas_cumprod(schedule), tensors["alphas_cumprod"], rtol=1e-6, atol=0)
    for steps in (25, 50):
        assert sampling_timesteps(schedule, steps) == meta[f"{sampler[:4]}_timesteps_{steps}"]
    pairs = {step.t: step for step in sampling_pairs(schedule, 50)}
    for key, expected in tensors.items():
        if not (match := re.fullmatch(rf"{sampler}_(?:eta(\d)_|(x0)_)?t(\d+)", key)):
            continue
        step = pairs[int(match[3])]
        if match[2]:
            ours = transport(tensors["x"], tensors["eps"], step.at, CLEAN)
        else:
            ours = stepped(
                tensors["x"], tensors["eps"], step, eta if match[1] is None else float(match[1]), tensors["noise"]
            )
        # near the clean end 1 - alphas_cumprod is 1e-4, of which the reference's float32 knows three digits
        limit = STEP if sampler == "ddim50" else 5 * STEP
        assert (ours - expected).abs().max() <= limit * max(1.0, expected.abs().max().item()), key


def stepped(x: Tensor, eps: Tensor, step: Step, eta: float, noise: Tensor) -> Tensor:
    """A DDIM step whose fresh noise is the recorded one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anyi2v.diffusion.torch.randn", lambda *args, **options: noise)
        return ddim_step(x, eps, step.at, step.to, eta=eta, generator=torch.Generator())


def test_videocrafter_sampler_equals_the_recorded_one(root: Path) -> None:
    folder = family(root, "videocrafter2")
    tensors, meta = load_file(folder / "sampler.safetensors"), json.loads((folder / "sampler.json").read_text())
    schedule = videocrafter.SCHEDULE
    torch.testing.assert_close(alphas_cumprod(schedule), tensors["alphas_cumprod"], rtol=2e-6, atol=0)
    for steps in (20, 25, 30, 50):
        assert sampling_timesteps(schedule, steps)[::-1] == meta[f"timesteps_{steps}"]
    for t, scale in enumerate(tensors["scale_arr"][:1000].tolist()):
        here = level(schedule, t)
        assert here.signal / (1 - here.noise**2) ** 0.5 == pytest.approx(scale, abs=1e-6)
    eps = guided(tensors["eps_uncond"], tensors["eps_cond"], 12.0)
    compared = 0
    for key, expected in tensors.items():
        if not (match := re.fullmatch(r"n(\d+)_eta([\d.]+)_idx\d+_t(\d+)\.(x_prev|pred_x0)", key)):
            continue
        step = {step.t: step for step in sampling_pairs(schedule, int(match[1]))}[int(match[3])]
        ours = transport(tensors["x"], eps, step.at, CLEAN)
        if match[4] == "x_prev":
            ours = stepped(tensors["x"], eps, step, float(match[2]), tensors["noise"])
        # guidance of 12 enlarges the prediction and its rounding
        assert (ours - expected).abs().max() <= 10 * STEP * max(1.0, expected.abs().max().item()), key
        compared += 1
    assert compared


@torch.no_grad()
def test_videocrafter_text_tower_equals_the_recorded_one(root: Path) -> None:
    folder = family(root, "videocrafter2")
    data = json.loads((folder / "text_config.json").read_text())["text_cfg"]
    config = dataclasses.replace(
        videocrafter.TEXT,
        width=data["width"],
        layers=data["layers"],
        heads=data["heads"],
        length=data["context_length"],
        vocab_size=data["vocab_size"],
    )
    weights = {key: value.float() for key, value in load_file(folder / "text_weights.safetensors").items()}
    tower = TextTower(config)
    targets = {key: tuple(tensor.shape) for key, tensor in tower.state_dict().items()}
    tower.load_state_dict(convert(weights, videocrafter.rules(weights, "text"), targets)[0])
    recorded = load_file(folder / "text_forward.safetensors")
    out = tower.eval()(recorded["tokens"].long())
    assert (out - recorded["z_penultimate_ln_final"]).abs().max() <= LIMIT


def test_videocrafter_tokens_equal_the_recorded_ones(root: Path) -> None:
    recorded = json.loads((family(root, "videocrafter2") / "tokens_open_clip.json").read_text())
    prompts = {prompt: ids for prompt, ids in recorded.items() if isinstance(ids, list)}
    assert prompts
    assert tokenize(videocrafter.TEXT, list(prompts)).tolist() == list(prompts.values())
