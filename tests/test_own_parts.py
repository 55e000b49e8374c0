"""Methods, samplers, objectives and observers of one's own, passed to `animate`."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anyi2v.denoiser import Denoiser
from anyi2v.diffusion import Step, ddim_step
from anyi2v.errors import HookError, InputError, NumericsError
from anyi2v.job import Job, Run
from anyi2v.method.anyi2v import AnyI2V
from anyi2v.method.crops import Crops
from anyi2v.method.objective import FeatureAlignment
from anyi2v.pipeline import Result, animate
from anyi2v.reports.record import Origin
from anyi2v.reports.repeat import check_repeat
from anyi2v.reports.writing import write_run
from anyi2v.samplers import DPMSolver2M, ddim
from anyi2v.taps import Pass, Tap, no_tap
from anyi2v.tracks import Track, Tracks

from .networks import SHORT, tiny_backbone

BACKBONE = tiny_backbone()
IMAGE = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
TRACKS = Tracks(16, 16, (Track("a", ((1.0, 1.0, 8.0, 8.0), (7.0, 6.0, 14.0, 13.0))),))


def run(**options: Any) -> Result:
    return animate(BACKBONE, IMAGE, "a red ball", TRACKS, **{"config": SHORT, **options})


def own_ddim(z: Tensor, noise: Tensor, step: Step) -> Tensor:
    return ddim_step(z, noise, step.at, step.to)


def test_the_defaults_passed_explicitly_are_the_defaults() -> None:
    expected = run().video
    for options in (
        {"sampler": ddim},
        {"sampler": own_ddim},
        {"method": AnyI2V()},
        {"objective": FeatureAlignment(SHORT)},
    ):
        assert torch.equal(run(**options).video, expected), options


def test_a_sampler_is_used_and_serves_two_jobs() -> None:
    sampler = DPMSolver2M()
    first = run(sampler=sampler)
    assert not torch.equal(first.video, run().video)
    assert torch.equal(run(sampler=sampler).video, first.video)
    assert first.parts == {"sampler": "dpm-solver-2m"}


def test_eta_belongs_to_ddim() -> None:
    config = replace(SHORT, eta=0.5)
    assert torch.equal(run(config=config, sampler=ddim).video, run(config=config).video)
    with pytest.raises(InputError, match=r"eta=0\.5 is a setting of the sampler ddim"):
        run(config=config, sampler=own_ddim)


class Outputs:
    """The differences of a layer's output from frame 1's."""

    points = ("up_blocks.1.attentions.0",)

    def __call__(self, features: Mapping[str, Tensor], crops: Crops) -> Tensor:
        (x,) = features.values()
        return (x - x[:1]).square().mean()


def test_an_objective_is_minimised_and_its_points_are_checked() -> None:
    result = run(objective=Outputs(), config=replace(SHORT, iterations=6, optimise_steps=1))
    assert result.losses[-1].loss < result.losses[0].loss
    assert result.masks == []
    assert result.parts["objective"].endswith("test_own_parts.Outputs")

    class Nowhere(Outputs):
        points = ("up_blocks.9.attentions.0",)

    with pytest.raises(HookError, match=r"unknown hook point 'up_blocks\.9"):
        run(objective=Nowhere())
    with pytest.raises(InputError, match="pass one of them"):
        run(objective=Outputs(), method=AnyI2V())


class Shift(Run):
    """Begins with half the noise, moves the latents and edits both passes."""

    def __init__(self, seen: list[str]):
        self.seen = seen

    def initial_latents(self, noise: Tensor) -> Tensor:
        return noise / 2

    def guide(self, z: Tensor, step: Step) -> Tensor:
        self.seen.append(f"guide {step.index}")
        return z + 0.1

    def tap(self, step: Step) -> Tap:
        return lambda name, x: x + 1 if name == "conv_in" else x

    def negative_tap(self, step: Step) -> Tap:
        return lambda name, x: x - 1 if name == "conv_in" else x


class Shifts:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def start(self, job: Job, denoiser: Denoiser) -> Run:
        self.seen.append(f"start {job.prompt}")
        return Shift(self.seen)


def test_a_method_is_the_loop_written_out() -> None:
    method = Shifts()
    result = run(method=method)
    assert method.seen == ["start a red ball", *(f"guide {i}" for i in range(SHORT.steps))]
    assert result.features == {} and result.losses == [] and result.masks == []

    unet, (negative, positive) = BACKBONE.unet, BACKBONE.encode_text(["", "a red ball"]).split(1)
    z = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0)) / 2
    with torch.no_grad():
        for i in range(SHORT.steps):
            z, t = z + 0.1, 751 - 250 * i
            up, down = (lambda name, x, by=by: x + by if name == "conv_in" else x for by in (1, -1))
            uncond, cond = unet(z, t, negative, tap=down), unet(z, t, positive, tap=up)
            (step,) = [step for step in steps() if step.t == t]
            z = own_ddim(z, uncond + SHORT.guidance_scale * (cond - uncond), step)
        video = (BACKBONE.vae.decode(z[0]) / 2 + 0.5).clamp(0, 1)
    # float32
    torch.testing.assert_close(result.video, video, rtol=0, atol=1e-5)


def test_the_denoiser_of_a_job_is_bound_to_its_settings() -> None:
    class Noted(Shifts):
        def start(self, job: Job, denoiser: Denoiser) -> Run:
            self.denoiser, self.job = denoiser, job
            return super().start(job, denoiser)

    method, seen = Noted(), list[Pass]()
    run(method=method, fps=5, low_memory=True, taps=lambda at: seen.append(at) or no_tap)
    denoiser = method.denoiser
    assert (denoiser.fps, denoiser.low_memory, denoiser.config, method.job.low_memory) == (5, True, SHORT, True)
    positive, negative = BACKBONE.encode_text(["a red ball", ""]).split(1)
    # float32: a batch of texts in another order
    torch.testing.assert_close(denoiser.positive, positive)
    torch.testing.assert_close(denoiser.negative, negative)
    assert [at.step for at in seen] == list(range(SHORT.steps))


def steps() -> list[Step]:
    seen: list[Step] = []
    run(config=replace(SHORT, optimise_steps=0), observe=lambda step, z: seen.append(step))
    return seen


def test_an_observer_sees_the_latents_after_each_step() -> None:
    seen: list[tuple[int, Tensor]] = []
    result = run(observe=lambda step, z: seen.append((step.index, z.clone())))
    assert [index for index, _ in seen] == list(range(SHORT.steps))
    with torch.no_grad():
        last = (BACKBONE.vae.decode(seen[-1][1][0]) / 2 + 0.5).clamp(0, 1)
    assert torch.equal(result.video, last)


def test_progress_tells_every_unit_of_every_stage() -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    run(progress=lambda stage, done, total: seen.setdefault(stage, []).append((done, total)))
    totals = {
        "inversion": SHORT.inversion_timestep,
        "optimisation": SHORT.optimise_steps * SHORT.iterations,
        "denoising": SHORT.steps,
        "decode": 1,
    }
    assert seen == {name: [(done, total) for done in range(total + 1)] for name, total in totals.items()}


def test_a_sampler_that_breaks_is_found_in_its_step() -> None:
    def broken(z: Tensor, noise: Tensor, step: Step) -> Tensor:
        return z / 0 if step.index == 2 else own_ddim(z, noise, step)

    with pytest.raises(NumericsError, match=r"the latents became NaN .* step 2 .*every layer is finite"):
        run(sampler=broken)


def test_records_name_the_parts_and_unknown_ones_are_not_repeated(tmp_path: Path) -> None:
    origin = Origin("micro")
    files = {"backbone": "micro", "image": None, "tracks": None, "embeddings": [], "control": None}
    repeat: dict[str, Any] = {**files, "device": "cpu"}
    write_run(tmp_path / "known", run(sampler=DPMSolver2M()), IMAGE, origin)
    assert json.loads((tmp_path / "known" / "run.json").read_text())["parts"] == {"sampler": "dpm-solver-2m"}
    check_repeat(tmp_path / "known" / "run.json", **repeat)
    write_run(tmp_path / "own", run(sampler=own_ddim), IMAGE, origin)
    with pytest.raises(InputError, match=r"made with the sampler .*own_ddim, which the command line does not know"):
        check_repeat(tmp_path / "own" / "run.json", **repeat)


def test_a_job_that_neither_injects_nor_optimises_is_plain_sampling() -> None:
    class Plain:
        def start(self, *_: Any) -> Run:
            return Run()

    nothing = replace(SHORT, inject_steps=0, optimise_steps=0)
    assert torch.equal(run(config=nothing).video, run(config=nothing, method=Plain()).video)
