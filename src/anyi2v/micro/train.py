"""Trains the micro backbone on the synthetic world: `python -m anyi2v.micro.train --out runs/micro`.

Three stages. "images": UNet and text tower on single frames in all modalities. "motion": motion modules on
clips, everything else frozen, as AnimateDiff does. "vae": the autoencoder. Each stage plans its steps from the
minutes it is given and the speed it measures, writes a checkpoint every few minutes and resumes from it, and
its data are a function of the step, so that an interrupted run ends like an uninterrupted one.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from anyi2v.backbone.checkpoint import Backbone, build, save
from anyi2v.backbone.config import (
    BackboneConfig,
    MotionConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
)
from anyi2v.backbone.text import tokenize
from anyi2v.diffusion import alphas_cumprod
from anyi2v.files import atomic
from anyi2v.micro.modalities import WORDS
from anyi2v.micro.training_data import analytic_latents, clip_batch, image_batch

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
    # one norm group: groups of few channels would wipe out absolute colour
    vae=VAEConfig(channels=(16, 32), layers=1, groups=1, scale=1.0),
    text=TextConfig(width=64, layers=2, heads=4, mlp_ratio=2.0, length=16, vocab_size=len(WORDS), words=WORDS),
    height=64,
    width=64,
    frames=8,
    fps=8,
)
OFFSET_NOISE = 0.1
"""Of the noise's mean per frame and channel; without it the mean colour leaks through the last noise level."""
Stage = Literal["images", "motion", "vae"]
STAGES: tuple[Stage, ...] = ("images", "motion", "vae")


@dataclass(frozen=True)
class Args:
    """Options of the trainer."""

    out: Path = Path("runs/micro")
    """Folder of checkpoints, records and the finished backbone."""
    images: float = 60
    """Minutes for the image stage."""
    motion: float = 45
    """Minutes for the motion stage."""
    vae: float = 10
    """Minutes for the autoencoder."""
    processes: int = 2
    """Training processes of one thread each; their gradients are averaged."""
    save_every: float = 5
    """Minutes between checkpoints."""
    steps: int | None = None
    """Fixed number of steps per stage, instead of minutes (for tests and exact repetition)."""
    batch: float = 1.0
    """Factor on the batch sizes."""


@dataclass(frozen=True)
class Recipe:
    """What differs between the stages."""

    batch: int
    """Per process."""
    lr: float
    loss: Callable[[Backbone, int, int, int], Tensor]
    """(backbone, first sample, count, noise seed) -> loss."""
    parameters: Callable[[Backbone], list[nn.Parameter]]


def noise_like(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise whose mean per frame and channel wanders (offset noise)."""
    offset = torch.randn(*latents.shape[:-2], 1, 1, generator=generator)
    return torch.randn(latents.shape, generator=generator) + OFFSET_NOISE * offset


def noise_loss(
    backbone: Backbone,
    latents: Tensor,
    captions: list[str],
    timesteps: Tensor,
    generator: torch.Generator,
    *,
    video: bool,
) -> Tensor:
    """Error of the noise prediction, weighted 0.8 min-SNR-5 + 0.2 (Hang et al. 2023)."""
    signal = alphas_cumprod(backbone.config.schedule)[timesteps][:, None, None, None, None]
    noise = noise_like(latents, generator)
    z = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    text = backbone.text(tokenize(backbone.config.text, captions))
    predicted = backbone.unet(z, timesteps, text, temporal=video)
    snr = (signal / (1 - signal)).flatten()
    weight = 0.8 * snr.clamp(max=5) / snr + 0.2
    return (weight * (predicted - noise).square().flatten(1).mean(1)).mean()


def image_loss(backbone: Backbone, first: int, count: int, seed: int) -> Tensor:
    """Stage "images"."""
    images, captions = image_batch("train" if seed >= 0 else "validation", first, count)
    generator = torch.Generator().manual_seed(abs(seed))
    timesteps = torch.randint(1000, (count,), generator=generator)
    return noise_loss(backbone, analytic_latents(images)[:, None], captions, timesteps, generator, video=False)


def motion_loss(backbone: Backbone, first: int, count: int, seed: int) -> Tensor:
    """Stage "motion"; layout and motion are decided at high noise, so 60 % of the timesteps lie there."""
    clips, captions = clip_batch("train" if seed >= 0 else "validation", first, count)
    generator = torch.Generator().manual_seed(abs(seed))
    high = torch.rand(count, generator=generator) < 0.6
    low, top = (torch.randint(a, b, (count,), generator=generator) for a, b in ((0, 1000), (400, 1000)))
    timesteps = torch.where(high, top, low)
    return noise_loss(backbone, analytic_latents(clips), captions, timesteps, generator, video=True)


def vae_loss(backbone: Backbone, first: int, count: int, seed: int) -> Tensor:
    """Stage "vae": the encoder regresses the analytic latents, the decoder restores the image from noisy ones."""
    images, _ = image_batch("train" if seed >= 0 else "validation", first, count)
    generator = torch.Generator().manual_seed(abs(seed))
    pixels, target = 2 * images - 1, analytic_latents(images)
    mean, logvar = backbone.vae.moments(pixels)
    jitter = 0.05 * torch.randn(target.shape, generator=generator)
    error = backbone.vae.decode(target + jitter, chunk=count) - pixels
    # the posterior is not used; a constant keeps it finite and narrow
    narrow = (logvar + 8).square().mean()
    return error.square().mean() + 0.5 * error.abs().mean() + (mean - target).square().mean() + 1e-3 * narrow


def image_parameters(backbone: Backbone) -> list[nn.Parameter]:
    """Everything but the temporal layers and the autoencoder."""
    spatial = [p for name, p in backbone.unet.named_parameters() if "temporals" not in name]
    return spatial + list(backbone.text.parameters())


def motion_parameters(backbone: Backbone) -> list[nn.Parameter]:
    """The temporal layers."""
    return [p for name, p in backbone.unet.named_parameters() if "temporals" in name]


RECIPES: dict[Stage, Recipe] = {
    "images": Recipe(24, 1.6e-3, image_loss, image_parameters),
    "motion": Recipe(4, 1.6e-3, motion_loss, motion_parameters),
    "vae": Recipe(8, 4e-3, vae_loss, lambda backbone: list(backbone.vae.parameters())),
}


class Run:
    """One stage in one process: model, average of its weights, optimiser, step."""

    def __init__(self, stage: Stage, args: Args, rank: int):
        self.stage, self.args, self.rank = stage, args, rank
        self.recipe = RECIPES[stage]
        torch.manual_seed(0)  # the initial weights; every process gets the same
        self.backbone = build(CONFIG)
        self.backbone.unet.to(memory_format=torch.channels_last)  # 15 % faster convolutions on a CPU
        load_stages(self.backbone, args.out, before=stage)
        for network in self.backbone.networks.values():
            network.requires_grad_(False)
        self.parameters = self.recipe.parameters(self.backbone)
        for parameter in self.parameters:
            parameter.requires_grad_()
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=self.recipe.lr, betas=(0.9, 0.99), weight_decay=1e-4)
        self.step, self.planned, self.seconds = 0, args.steps or 0, 0.0
        self.batch = max(1, round(self.recipe.batch * args.batch))
        self._resume()

    @property
    def file(self) -> Path:
        """The stage's checkpoint."""
        return self.args.out / f"{self.stage}.pt"

    def _resume(self) -> None:
        if not self.file.exists():
            return
        saved = torch.load(self.file, weights_only=True)
        with torch.no_grad():
            for p, a, value, average in zip(
                self.parameters, self.average, saved["parameters"], saved["average"], strict=True
            ):
                p.copy_(value)
                a.copy_(average)
        self.optimiser.load_state_dict(saved["optimiser"])
        self.step, self.planned, self.seconds = saved["step"], saved["planned"], saved["seconds"]

    def save(self) -> None:
        """Writes the checkpoint; only the first process does."""
        saved = {
            "parameters": [p.detach() for p in self.parameters],
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "planned": self.planned,
            "seconds": self.seconds,
        }
        with atomic(self.file) as temporary:
            torch.save(saved, temporary)

    def train_step(self) -> float:
        """One update; returns the loss of this process."""
        world = self.args.processes
        first = (self.step * world + self.rank) * self.batch
        loss = self.recipe.loss(self.backbone, first, self.batch, 1 + self.step * world + self.rank)
        loss.backward()
        gradient = torch.cat(
            [p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in self.parameters]
        )
        if world > 1:
            dist.all_reduce(gradient)
            gradient /= world
        gradient *= (1.0 / gradient.norm().clamp(min=1.0)).item()
        for p, part in zip(self.parameters, gradient.split([p.numel() for p in self.parameters]), strict=True):
            p.grad = part.view_as(p)
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.lr * learning_rate(self.step, self.planned)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        decay = min(0.998, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
        self.step += 1
        return loss.item()

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Loss of the averaged weights on the same 32 batches' worth of validation samples each time."""
        with averaged(self):
            losses = [self.recipe.loss(self.backbone, i * self.batch, self.batch, -1 - i).item() for i in range(4)]
        return sum(losses) / len(losses)


def learning_rate(step: int, planned: int) -> float:
    """Warm-up over 100 steps (or a tenth of few), then half a cosine to a hundredth."""
    warm = min(100, max(planned // 10, 1))
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm) / max(planned - warm, 1)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


class averaged(AbstractContextManager[None]):
    """Within the block the model has its averaged weights."""

    def __init__(self, run: Run):
        self.run = run

    def __enter__(self) -> None:
        """Swaps the weights."""
        self._swap()

    def __exit__(self, *exception: object) -> None:
        """Swaps them back."""
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for p, a in zip(self.run.parameters, self.run.average, strict=True):
            kept = p.detach().clone()
            p.copy_(a)
            a.copy_(kept)


def load_stages(backbone: Backbone, out: Path, before: Stage | None) -> None:
    """Puts the averaged weights of the finished or running stages before `before` into the networks."""
    for stage in STAGES:
        if stage == before:
            return
        if (out / f"{stage}.pt").exists():
            average = torch.load(out / f"{stage}.pt", weights_only=True)["average"]
            with torch.no_grad():
                for p, a in zip(RECIPES[stage].parameters(backbone), average, strict=True):
                    p.copy_(a)


def export(out: Path) -> Path:
    """Writes `micro.safetensors` (float16) from the averaged weights of all stages so far."""
    backbone = build(CONFIG)
    load_stages(backbone, out, before=None)
    path = out / "micro.safetensors"
    save(backbone, path, dtype=torch.float16)
    return path


def plan(run: Run, minutes: float) -> None:
    """Fixes the number of steps from the speed of the first ten, which are trained again afterwards."""
    if run.planned:
        return
    run.planned = 10**6
    start = time.perf_counter()
    for _ in range(10):
        run.train_step()
    seconds = torch.tensor((time.perf_counter() - start) / 10)
    if run.args.processes > 1:
        dist.all_reduce(seconds)
        seconds /= run.args.processes
    fresh = Run(run.stage, replace(run.args, steps=max(1, int(60 * minutes / seconds.item()))), run.rank)
    run.__dict__.update(fresh.__dict__)


def steps(run: Run) -> Iterator[int]:
    """The steps that are left, with a progress bar in the first process."""
    bar = tqdm(total=run.planned, initial=run.step, desc=run.stage, disable=run.rank > 0, mininterval=10)
    with bar:
        while run.step < run.planned:
            yield run.step
            bar.update()


def train_stage(stage: Stage, args: Args, rank: int) -> None:
    """Trains one stage to its end, or goes on where it stopped."""
    run = Run(stage, args, rank)
    plan(run, {"images": args.images, "motion": args.motion, "vae": args.vae}[stage])
    start = saved_at = time.perf_counter()
    before, total, count = run.seconds, 0.0, 0
    for _ in steps(run):
        total, count = total + run.train_step(), count + 1
        run.seconds = before + time.perf_counter() - start
        # every process must take the same decision, so it depends on the step alone
        last = run.step == run.planned
        if rank == 0 and (last or run.step % 100 == 0):
            record(
                args.out,
                stage=stage,
                step=run.step,
                planned=run.planned,
                loss=total / count,
                seconds=round(run.seconds, 1),
            )
            total, count = 0.0, 0
        if rank == 0 and (last or time.perf_counter() - saved_at > 60 * args.save_every):
            record(args.out, stage=stage, step=run.step, validation_loss=run.validation_loss())
            run.save()
            export(args.out)
            saved_at = time.perf_counter()


def record(out: Path, **entry: Any) -> None:
    """Appends one line to the run's record."""
    with (out / "record.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


def worker(rank: int, args: Args) -> None:
    """One training process."""
    torch.set_num_threads(1)
    if args.processes > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=os.environ.get("MASTER_PORT", "29511"))
        dist.init_process_group("gloo", rank=rank, world_size=args.processes)
    for stage in STAGES:
        train_stage(stage, args, rank)
        if args.processes > 1:
            dist.barrier()  # the next stage begins with the checkpoint that the first process writes
    if args.processes > 1:
        dist.destroy_process_group()


def main(args: Args) -> Path:
    """Trains all stages and returns the path of the finished backbone."""
    args.out.mkdir(parents=True, exist_ok=True)
    # large tensors come and go at every step; without this the allocator gives their pages back each time
    os.environ.update(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_="100000000000", MALLOC_TOP_PAD_="500000000")
    if args.processes == 1:
        worker(0, args)
    else:
        torch.multiprocessing.spawn(worker, args=(args,), nprocs=args.processes)
    return export(args.out)


if __name__ == "__main__":
    import tyro

    print(main(tyro.cli(Args)))
