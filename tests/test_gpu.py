"""What only a GPU can show: networks there equal those on a CPU, and recorded passes those that are started anew."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from anyi2v.backbone.unet import UNet
from anyi2v.checkpoints.checkpoint import load
from anyi2v.denoiser import Denoiser
from anyi2v.diffusion import inversion_pairs, sampling_pairs
from anyi2v.execution.graphs import graphed
from anyi2v.method.anyi2v import injection
from anyi2v.method.boxes import job_crops
from anyi2v.method.config import MethodConfig
from anyi2v.method.inversion import invert
from anyi2v.method.objective import FeatureAlignment
from anyi2v.method.optimisation import alignment_gradient
from anyi2v.pipeline import animate
from anyi2v.tracks import Track, Tracks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and PyTorch for it")

TRACKS = Tracks(64, 64, (Track("ball", ((8.0, 8.0, 32.0, 32.0), (24.0, 24.0, 56.0, 56.0))),))
DEVICES = ("cpu", "cuda")
BACKBONES = ("micro", "micro-lavie", "micro-vc2")


@pytest.fixture(autouse=True)
def _full_float32() -> Iterator[None]:
    """Convolutions in float32 proper: by default PyTorch rounds their inputs on a GPU to TensorFloat-32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def network(name: str, device: str) -> UNet:
    return load(name).unet.to(device)


def inputs(unet: UNet, device: str, frames: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(1, frames, unet.config.latent_channels, 16, 16, generator=generator)
    return z.to(device), torch.randn(1, 12, unet.config.context_dim, generator=generator).to(device)


@pytest.mark.parametrize("name", BACKBONES)
def test_networks_on_a_gpu_equal_those_on_a_cpu(name: str) -> None:
    """The prediction, with a gradient wanted and without, and the gradient."""
    found = []
    for device in DEVICES:
        unet = network(name, device)
        z, text = inputs(unet, device)
        with torch.no_grad():
            alone = unet(z, 301, text, fps=8.0)
        z.requires_grad_()
        noise = unet(z, 301, text, fps=8.0)
        (gradient,) = torch.autograd.grad(noise.square().sum(), z)
        found.append([x.detach().cpu() for x in (alone, noise, gradient)])
    for ours, theirs in zip(*found, strict=True):
        # float32 through some fifty layers, in other orders
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4 * theirs.abs().max().item())


@pytest.mark.parametrize("name", BACKBONES)
def test_recorded_passes_equal_those_started_anew(name: str) -> None:
    """Of several forms in turns; the network itself stays as it is."""
    unet = network(name, "cuda")
    twin = graphed(unet)
    with torch.no_grad():
        for seed in range(4):
            for frames, temporal in ((1, False), (8, True)):
                z, text = inputs(unet, "cuda", frames, seed)
                options = {"fps": 8.0, "temporal": temporal}
                noise = twin(z, 100 + seed, text, **options)
                torch.testing.assert_close(noise, unet(z, 100 + seed, text, **options), rtol=0, atol=1e-5)
    assert twin._compiled is not None
    recorded = twin._compiled.recorded  # pyright: ignore[reportFunctionMemberAccess]
    assert len(recorded) == 2
    assert None not in recorded.values()
    assert unet._compiled is None


def test_the_recorded_gradient_equals_that_of_a_pass_started_anew() -> None:
    backbone = load("micro").to("cuda")
    unet, config = backbone.unet, MethodConfig.from_dict(backbone.config.method)
    crops = job_crops(TRACKS.resample(8), config, backbone.config.vae.factor).to(backbone.device)
    z, text = inputs(unet, "cuda")
    steps = inversion_pairs(backbone.config.schedule, until=201, stride=100)
    names = (*config.inject_hidden, *config.inject_query)
    tap = injection(invert(Denoiser(unet, text).images(len(steps)), z[:, :1], steps, names), config)
    objective = FeatureAlignment(config)
    recorded = Denoiser(unet, text, config=config)
    for i, step in enumerate(sampling_pairs(backbone.config.schedule, 4)):  # the first pass is no graph
        z, _ = inputs(unet, "cuda", seed=i)
        started = Denoiser(unet, text, config=config)
        ours, theirs = (alignment_gradient(d, z, step, objective, crops, tap) for d in (recorded, started))
        assert bool([reader for _, reader in recorded._readers.values() if reader]) == (i > 0)
        torch.testing.assert_close(ours[1].loss, theirs[1].loss)
        # the backward pass of PyTorch's attention adds up in an order of its own each time
        torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-4 * theirs[0].abs().max().item())


def test_a_job_on_a_gpu_makes_the_video_of_a_cpu() -> None:
    videos = []
    for device in DEVICES:
        backbone = load("micro").to(device)
        config = replace(MethodConfig.from_dict(backbone.config.method), optimise_steps=1, iterations=1)
        image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
        videos.append(animate(backbone, image, "a red circle", TRACKS, config=config).video)
    # more iterations would drift apart: AdamW's first steps go by the signs of the gradient
    assert (videos[0] - videos[1]).abs().mean() < 1e-3
