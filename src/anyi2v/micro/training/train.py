"""Training of the micro backbone on the synthetic world: `python -m anyi2v.micro.training.train --out runs/micro`.

There are three stages. "images" trains UNet and text tower on single frames in all modalities, "vae" the autoencoder,
and "motion" the temporal layers on clips with everything else frozen, as in AnimateDiff. `--control 35` instead trains
a sparse control network for a finished, frozen backbone, as in SparseCtrl. Each stage plans its number of steps from
the given minutes and its measured speed, writes a checkpoint every few minutes and resumes from it. Its data are a
function of the step, so that an interrupted run ends like an uninterrupted one. A stage that is given other minutes
than before continues as if so planned, with the corresponding learning rate.
"""

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from tqdm import tqdm

from anyi2v.backbone.networks import Backbone
from anyi2v.checkpoints.checkpoint import save, save_parts
from anyi2v.checkpoints.sparse_control import save_control
from anyi2v.errors import InputError
from anyi2v.files import atomic
from anyi2v.images.media import write_image
from anyi2v.micro.training.architecture import initial, sparse_control
from anyi2v.micro.training.lessons import MICRO, Lessons
from anyi2v.micro.training.objectives import STAGES, Stage, recipes, stages
from anyi2v.micro.training.options import Args
from anyi2v.micro.training.samples import sample_sheet


class Run:
    """State of one stage in one process: model, average of its weights, optimiser and step."""

    def __init__(self, stage: Stage, args: Args, rank: int, lessons: Lessons = MICRO):
        self.stage: Stage = stage
        self.args, self.rank, self.lessons = args, rank, lessons
        self.recipe = recipes(lessons, args.agreement)[stage]
        self.lr = self.recipe.lr * (0.5 if args.start else 1)
        self.backbone = initial(args, lessons.config).to(args.device)
        if stage != "control":
            load_stages(self.backbone, args.out, before=stage)
        for network in self.backbone.networks.values():
            network.requires_grad_(False)
        if args.compile:
            self.backbone.unet.compile(dynamic=False)
        self.parameters = self.recipe.parameters(self.backbone)
        for parameter in self.parameters:
            parameter.requires_grad_()
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=self.lr, betas=(0.9, 0.99), weight_decay=1e-4)
        self.step, self.planned, self.seconds = 0, args.steps or 0, 0.0
        minutes = {"images": args.images, "motion": args.motion, "vae": args.vae, "control": args.control}
        self.minutes = minutes[stage]
        self.batch = max(1, round(self.recipe.batch * args.batch))
        self._resume()

    @property
    def file(self) -> Path:
        """The stage's checkpoint."""
        return self.args.out / f"{self.stage}.pt"

    def _resume(self) -> None:
        if not self.file.exists():
            return
        saved = torch.load(self.file, weights_only=True, map_location=self.args.device)
        with torch.no_grad():
            for p, a, value, average in zip(
                self.parameters, self.average, saved["parameters"], saved["average"], strict=True
            ):
                p.copy_(value)
                a.copy_(average)
        self.optimiser.load_state_dict(saved["optimiser"])
        self.step, self.planned, self.seconds = saved["step"], saved["planned"], saved["seconds"]
        if self.minutes != saved["minutes"]:  # the stage is extended or shortened
            self.planned = round(self.planned * self.minutes / saved["minutes"])

    def save(self) -> None:
        """Write the checkpoint; called only in the first process."""
        saved = {
            "parameters": [p.detach() for p in self.parameters],
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "planned": self.planned,
            "seconds": self.seconds,
            "minutes": self.minutes,
        }
        with atomic(self.file) as temporary:
            torch.save(saved, temporary)

    def loss(self, first: int, seed: int) -> torch.Tensor:
        """Compute the loss of the batch starting at sample `first`, with the noise of `seed` (negative: validation)."""
        with torch.autocast(self.args.device, dtype=torch.bfloat16, enabled=self.args.bf16):
            return self.recipe.loss(self.backbone, first, self.batch, seed)

    def train_step(self) -> float:
        """Take one optimiser step; return the loss of this process."""
        world = self.args.processes
        first = (self.step * world + self.rank) * self.batch
        loss = self.loss(first, 1 + self.step * world + self.rank)
        loss.backward()
        gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self.parameters])
        if world > 1:
            dist.all_reduce(gradient)
            gradient /= world
        gradient *= (1.0 / gradient.norm().clamp(min=1.0)).item()
        for p, part in zip(self.parameters, gradient.split([p.numel() for p in self.parameters]), strict=True):
            p.grad = part.view_as(p)
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr * learning_rate(self.step, self.planned)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        decay = min(0.998, (1 + self.step) / (10 + self.step))
        for average, p in zip(self.average, self.parameters, strict=True):
            average.lerp_(p.detach(), 1 - decay)
        self.step += 1
        return loss.item()

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Compute the loss of the averaged weights on four fixed validation batches."""
        with averaged(self):
            losses = [self.loss(i * self.batch, -1 - i).item() for i in range(4)]
        return sum(losses) / len(losses)


def learning_rate(step: int, planned: int) -> float:
    """Return the learning rate factor: warm-up over 100 steps (or a tenth of all), then half a cosine to a
    hundredth."""
    warm = min(100, max(planned // 10, 1))
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm) / max(planned - warm, 1)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


@contextmanager
def averaged(run: Run) -> Iterator[None]:
    """Use the averaged weights in the model within the block."""
    with torch.no_grad():
        trained = [p.detach().clone() for p in run.parameters]
        for p, average in zip(run.parameters, run.average, strict=True):
            p.copy_(average)
        yield
        for p, value in zip(run.parameters, trained, strict=True):
            p.copy_(value)


def load_stages(backbone: Backbone, out: Path, before: Stage | None) -> None:
    """Load the averaged weights of the stages before `before` into the networks."""
    for stage in STAGES:
        if stage == before:
            return
        load_average(backbone, out, stage)


def load_average(backbone: Backbone, out: Path, stage: Stage) -> None:
    """Puts a stage's averaged weights into the networks, if it has begun."""
    if (out / f"{stage}.pt").exists():
        average = torch.load(out / f"{stage}.pt", weights_only=True)["average"]
        with torch.no_grad():
            for p, a in zip(recipes()[stage].parameters(backbone), average, strict=True):
                p.copy_(a)


def export(args: Args, lessons: Lessons = MICRO) -> Path:
    """Write the backbone (float16) with the averaged weights of all stages so far, named after its configuration.

    With `args.spatial`, only the parts missing there are written; with `args.control`, the sparse control network.
    """
    backbone = initial(args, lessons.config)
    if args.control:
        control = sparse_control(backbone)
        load_average(backbone, args.out, "control")
        path = args.out / f"{control.config.name}.safetensors"
        save_control(control, path, dtype=torch.float16)
        return path
    path = args.out / f"{backbone.config.name}.safetensors"
    load_stages(backbone, args.out, before=None)
    if args.spatial is None:
        save(backbone, path, dtype=torch.float16)
    else:
        save_parts(backbone, path, args.spatial, dtype=torch.float16)
    return path


def planned(run: Run) -> Run:
    """Plan the number of steps from the speed of ten steps, which are discarded."""
    if run.planned:
        return run
    run.planned = 10**6
    for _ in range(3):  # warm-up: memory is allocated and kernels are chosen
        run.train_step()
    start = time.perf_counter()
    for _ in range(10):
        run.train_step()
    seconds = torch.tensor((time.perf_counter() - start) / 10)
    if run.args.processes > 1:
        dist.all_reduce(seconds)
        seconds /= run.args.processes
    count = max(1, int(60 * run.minutes / seconds.item()))
    return Run(run.stage, replace(run.args, steps=count), run.rank, run.lessons)


def steps(run: Run) -> Iterator[int]:
    """Yield the remaining steps, with a progress bar in the first process."""
    bar = tqdm(total=run.planned, initial=run.step, desc=run.stage, disable=run.rank > 0, mininterval=10)
    with bar:
        while run.step < run.planned:
            yield run.step
            bar.update()


def train_stage(stage: Stage, args: Args, rank: int, lessons: Lessons = MICRO) -> None:
    """Train one stage to its end, resuming from its checkpoint."""
    run = planned(Run(stage, args, rank, lessons))
    start = saved_at = time.perf_counter()
    before, total, count = run.seconds, 0.0, 0
    for _ in steps(run):
        total, count = total + run.train_step(), count + 1
        run.seconds = before + time.perf_counter() - start
        # every process must decide alike, so this depends on the step alone
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
            if args.samples:
                with averaged(run):
                    sheet = sample_sheet(run.backbone, stage, args.samples, lessons)
                (args.out / "samples").mkdir(exist_ok=True)
                write_image(args.out / "samples" / f"{stage}-{run.step:06}.png", sheet)
            export(args, lessons)
            saved_at = time.perf_counter()


def record(out: Path, **entry: Any) -> None:
    """Append one line to the run's record."""
    with (out / "record.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


def worker(rank: int, args: Args, lessons: Lessons) -> None:
    """Run one training process."""
    torch.set_num_threads(1)
    if args.processes > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=os.environ.get("MASTER_PORT", "29511"))
        dist.init_process_group("gloo", rank=rank, world_size=args.processes)
    for stage in stages(args):
        train_stage(stage, args, rank, lessons)
        if args.processes > 1:
            dist.barrier()  # the next stage starts from the checkpoint written by the first process
    if args.processes > 1:
        dist.destroy_process_group()


def main(args: Args, lessons: Lessons = MICRO) -> Path:
    """Train all stages of a backbone, by default micro; return the path of the finished backbone.

    Raises InputError if the folder has unrelated weights, which would be replaced.
    """
    args.out.mkdir(parents=True, exist_ok=True)
    weights = [path for pattern in ("*.pt", "*.safetensors") for path in args.out.glob(pattern)]
    if weights and not (args.out / "record.jsonl").exists():
        raise InputError(f"{args.out} has {weights[0].name}, but no training record; give another folder")
    # keep freed pages: otherwise the allocator returns those of large tensors to the system in every step
    os.environ.update(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_="100000000000", MALLOC_TOP_PAD_="500000000")
    if args.processes == 1:
        worker(0, args, lessons)
    else:
        spawn(worker, args=(args, lessons), nprocs=args.processes)
    return export(args, lessons)


if __name__ == "__main__":
    import tyro

    print(main(tyro.cli(Args)))
