"""Time-limited, resumable training of an image UNet and its text tower on latents of rendered pictures."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from anyi2v.backbone.config import ScheduleConfig, TextConfig, UNetConfig
from anyi2v.backbone.text import TextTower, tokenize
from anyi2v.backbone.unet import UNet
from anyi2v.diffusion import ddim_step, guided, sampling_pairs
from anyi2v.files import atomic
from anyi2v.micro.training.objectives import noise_like, noised, signal_power
from anyi2v.micro.training.train import learning_rate
from benchmarks.scenes.codec import PatchPCA, fit
from benchmarks.scenes.grounds import GROUNDS
from benchmarks.scenes.world import WORDS, Pictures, caption

SCHEDULE = ScheduleConfig()
TEXT = TextConfig(width=64, layers=2, heads=4, mlp_ratio=2.0, length=12, vocab_size=len(WORDS), words=WORDS)
EMPTY_SHARE = 0.1
"""Fraction of captions left empty, for classifier-free guidance."""
OBJECT_WEIGHT = 3.0
"""Additional loss weight, on top of 1, in the cells of the object and around it."""
LR = 1e-3
OUTLINES = 150, 700
"""Timesteps that determine outlines; half of each batch is drawn from this range."""
AVERAGE = 0.998
"""Decay of the moving average of the weights."""


@dataclass(frozen=True)
class Setup:
    """An image model: its latents and its UNet."""

    size: int
    """Side of the pictures in pixels."""
    factor: int
    """Pixels per latent cell along each axis."""
    latent_channels: int
    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    layers: int = 1
    whitening: float = 1.0
    batch: int = 8
    bfloat16: bool = False
    """Whether training computes the network in bfloat16; weights, loss and samples stay in float32."""

    @property
    def unet(self) -> UNetConfig:
        """Configuration of the UNet, without temporal layers."""
        return UNetConfig(
            channels=self.channels,
            attention=self.attention,
            layers=self.layers,
            latent_channels=self.latent_channels,
            context_dim=TEXT.width,
            heads=4,
            groups=16,
            temporal=None,
        )


class Model(nn.Module):
    """UNet and text tower; weights are channels-last, which makes CPU convolutions 1.3 times as fast.

    The UNet predicts v = signal * noise - sqrt(1 - signal^2) * latents (Salimans & Ho 2022, appendix D). To predict the
    noise it would first have to learn to reproduce its input to within a thousandth before samples show anything.
    """

    def __init__(self, setup: Setup):
        super().__init__()
        self.unet, self.text = UNet(setup.unet), TextTower(TEXT)
        self.unet.to(memory_format=torch.channels_last)

    def forward(
        self, z: Float[Tensor, "n c h w"], timesteps: Int[Tensor, " n"] | int, tokens: Int[Tensor, "n l"]
    ) -> Float[Tensor, "n c h w"]:
        """Return the prediction of v."""
        return self.unet(z[:, None], timesteps, self.text(tokens), temporal=False)[:, 0]


class Examples(NamedTuple):
    """Training data."""

    codec: PatchPCA
    latents: Float[Tensor, "n c h w"]
    weights: Float[Tensor, "n 1 h w"]
    """Weights of the loss; their mean is one in each picture."""
    tokens: Int[Tensor, "n l"]


def examples(pictures: Pictures, names: Sequence[str], setup: Setup) -> Examples:
    """Compute latents, weights and captions of pictures."""
    codec = fit(_floats(pictures.images[:1000]), setup.factor, setup.latent_channels, setup.whitening)
    latents = torch.cat([codec.encode(_floats(part)) for part in pictures.images.split(500)])
    near = torch.cat([_near(part, setup.factor) for part in pictures.alpha.split(500)])
    weights = 1 + OBJECT_WEIGHT * near
    places, objects, grounds = list(GROUNDS), pictures.objects.tolist(), pictures.grounds.tolist()
    texts = [caption(names[int(o)], places[int(g)]) for o, g in zip(objects, grounds, strict=True)]
    return Examples(codec, latents, weights / weights.mean((2, 3), keepdim=True), tokenize(TEXT, texts))


def _floats(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def _near(alpha: Tensor, factor: int) -> Tensor:
    return F.max_pool2d(F.max_pool2d(alpha[:, None].float() / 255, factor), 3, stride=1, padding=1)


class Training:
    """A model, the average of its weights, and its training time so far; stored in `folder`."""

    def __init__(self, setup: Setup, minutes: float, folder: Path):
        torch.manual_seed(0)
        self.setup, self.minutes, self.folder = setup, minutes, folder
        self.model, self.average = Model(setup), Model(setup).requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        parameters = self.model.parameters()
        self.optimiser = torch.optim.AdamW(parameters, lr=LR, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
        self.step, self.seconds = 0, 0.0
        if self.file.exists():
            self.load()

    @property
    def file(self) -> Path:
        """Path of the checkpoint."""
        return self.folder / "model.pt"

    def load(self) -> None:
        """Resume from the checkpoint."""
        saved = torch.load(self.file, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.average.load_state_dict(saved["average"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.step, self.seconds = saved["step"], saved["seconds"]

    def save(self) -> None:
        """Write the checkpoint."""
        parts = {name: getattr(self, name).state_dict() for name in ("model", "average", "optimiser")}
        with atomic(self.file) as temporary:
            torch.save(parts | {"step": self.step, "seconds": self.seconds}, temporary)

    def log(self, **entry: Any) -> None:
        """Append a line to the record."""
        with (self.folder / "record.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def loss(self, data: Examples, generator: Generator, *, validation: bool = False) -> Tensor:
        """Return the weighted error of v on a random batch; the first 256 examples are held out for validation.

        Over noise levels the weight is min-SNR-5 for v (Hang et al. 2023), with SNR + 1 instead of SNR.
        """
        held, count, size = 256, len(data.latents), self.setup.batch
        low, high = (0, held) if validation else (held, count)
        which = torch.randint(low, high, (size,), generator=generator)
        anywhere, there = (
            torch.randint(*r, (size,), generator=generator) for r in ((0, SCHEDULE.train_steps), OUTLINES)
        )
        timesteps = torch.where(torch.arange(size) % 2 == 0, anywhere, there)
        latents, tokens = data.latents[which], data.tokens[which]
        noise = noise_like(latents, generator)
        power = signal_power(SCHEDULE, timesteps)[..., 0]
        empty = torch.rand(size, 1, generator=generator) < EMPTY_SHARE
        tokens = torch.where(empty, tokenize(TEXT, [""]), tokens)
        model = self.average if validation else self.model
        v = power.sqrt() * noise - (1 - power).sqrt() * latents
        with torch.autocast("cpu", torch.bfloat16, enabled=self.setup.bfloat16):
            predicted = model(noised(latents, noise, power), timesteps, tokens)
        error = (predicted.float() - v).square()
        snr = power / (1 - power)
        return ((snr.clamp(max=5) + 1) / (snr + 1) * data.weights[which] * error).mean()

    def train_step(self, data: Examples) -> float:
        """Make one update; its batch and noise depend only on the step."""
        loss = self.loss(data, Generator().manual_seed(self.step))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = LR * learning_rate(int(self.seconds), round(60 * self.minutes))
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        decay = min(AVERAGE, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for ours, theirs in zip(self.average.parameters(), self.model.parameters(), strict=True):
                ours.lerp_(theirs, 1 - decay)
        self.step += 1
        return loss.item()

    def run(self, data: Examples, every: float = 120.0) -> None:
        """Train until the process has used `minutes` of CPU time, independent of the machine's load.

        Writes a checkpoint and a line of the record every `every` seconds.
        """
        losses, kept = [], self.seconds
        while self.seconds < 60 * self.minutes:
            start = time.process_time()
            losses.append(self.train_step(data))
            self.seconds += time.process_time() - start
            if self.seconds - kept > every or self.seconds >= 60 * self.minutes:
                kept = self.seconds
                with torch.no_grad():
                    held = [self.loss(data, Generator().manual_seed(i), validation=True).item() for i in range(16)]
                self.log(
                    step=self.step,
                    pictures=self.step * self.setup.batch,
                    seconds=round(self.seconds),
                    loss=sum(losses) / len(losses),
                    validation_loss=sum(held) / len(held),
                )
                losses = []
                self.save()


@torch.no_grad()
def sample(
    model: Model, codec: PatchPCA, captions: Sequence[str], setup: Setup, *, seed: int, scale: float, steps: int
) -> Float[Tensor, "n 3 h w"]:
    """Sample pictures in [0, 1] from captions by DDIM with classifier-free guidance."""
    generator = Generator().manual_seed(seed)
    side = setup.size // setup.factor
    z = noise_like(torch.empty(len(captions), setup.latent_channels, side, side), generator)
    tokens = tokenize(TEXT, [""] * len(captions) + list(captions))
    for step in sampling_pairs(SCHEDULE, steps):
        without, with_text = model(torch.cat([z, z]), step.t, tokens).chunk(2)
        v = guided(without, with_text, scale)
        z = ddim_step(z, step.at.signal * v + step.at.noise * z, step.at, step.to)
    return (codec.decode(z) / 2 + 0.5).clamp(0, 1)
