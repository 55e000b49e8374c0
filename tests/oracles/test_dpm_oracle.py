"""DPM-Solver++(2M) against diffusers' DPMSolverMultistepScheduler."""

import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from anyi2v.backbone.config import ScheduleConfig
from anyi2v.diffusion import level, sampling_pairs
from anyi2v.samplers import DPMSolver2M


@settings(max_examples=25)
@given(
    st.integers(1, 60),
    st.sampled_from(["leading", "trailing"]),
    st.booleans(),
    st.sampled_from(["linear", "scaled_linear"]),
    st.integers(0, 99),
)
def test_every_step_agrees(steps: int, spacing: str, final_alpha_one: bool, curve: str, seed: int) -> None:
    config = ScheduleConfig(final_alpha_one=final_alpha_one, curve=curve)  # type: ignore[arg-type]
    theirs = DPMSolverMultistepScheduler(
        num_train_timesteps=config.train_steps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule=config.curve,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=False,
        final_sigmas_type="zero" if final_alpha_one else "sigma_min",
    )
    pairs = sampling_pairs(config, steps, spacing=spacing)  # type: ignore[arg-type]
    assume(pairs[-1].to == level(config, -1))  # where DDIM's own last step ends before, theirs does not
    theirs.set_timesteps(timesteps=[step.t for step in pairs])  # its own "leading" ones are others than DDIM's
    generator, ours = torch.Generator().manual_seed(seed), DPMSolver2M()
    z = expected = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    for step, t in zip(pairs, theirs.timesteps, strict=True):
        noise = torch.randn(z.shape, generator=generator, dtype=torch.float64)
        z = ours(z, noise, step)
        expected = theirs.step(noise, t, expected, return_dict=False)[0]
        # their levels and sigmas are float32
        assert (z - expected).abs().max() <= 1e-4 * expected.abs().max(), step
