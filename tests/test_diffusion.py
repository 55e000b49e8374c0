from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anyi2v.backbone.config import ScheduleConfig
from anyi2v.diffusion import (
    CLEAN,
    Level,
    add_noise,
    alphas_cumprod,
    ddim_step,
    guided,
    inversion_pairs,
    inversion_timesteps,
    level,
    noise_from_v,
    sampling_pairs,
    sampling_timesteps,
    transport,
)
from anyi2v.errors import InputError

PUBLISHED = ScheduleConfig()


@st.composite
def configs(draw: st.DrawFn) -> ScheduleConfig:
    start = draw(st.floats(1e-4, 1e-3))
    return ScheduleConfig(
        train_steps=draw(st.integers(2, 1000)),
        beta_start=start,
        beta_end=draw(st.floats(start, 0.02)),
        curve=draw(st.sampled_from(("linear", "scaled_linear"))),
        steps_offset=draw(st.integers(0, 1)),
        final_alpha_one=draw(st.booleans()),
    )


TIMES = st.integers(-1, 999)


def latent(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape or (2, 3, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Round trips amplify rounding by at most the ratio of the signals, 150 for these schedules: 150^2 * 2e-16 < 1e-11.
assert_near = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


def test_alphas_cumprod_by_hand() -> None:
    linear = ScheduleConfig(train_steps=3, beta_start=0.1, beta_end=0.3)
    roots = ScheduleConfig(train_steps=3, beta_start=0.01, beta_end=0.09, curve="scaled_linear")
    # a few float32 roundings
    torch.testing.assert_close(alphas_cumprod(linear), torch.tensor([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7]))
    torch.testing.assert_close(alphas_cumprod(roots), torch.tensor([0.99, 0.99 * 0.96, 0.99 * 0.96 * 0.91]))


@given(configs())
def test_levels_are_unit_circle_and_lose_signal(config: ScheduleConfig) -> None:
    table = [level(config, t) for t in range(-1, config.train_steps, max(config.train_steps // 7, 1))]
    assert all(abs(a.signal**2 + a.noise**2 - 1) < 1e-15 for a in table)
    assert all(a.signal >= b.signal for a, b in pairwise(table))
    assert alphas_cumprod(config).dtype == torch.float32


def test_final_level() -> None:
    assert level(PUBLISHED, -1) == level(PUBLISHED, -39) == CLEAN
    assert level(ScheduleConfig(final_alpha_one=False), -1) == level(PUBLISHED, 0)


def test_level_beyond_the_schedule() -> None:
    with pytest.raises(InputError, match=r"timestep 1000.*0\.\.999"):
        level(PUBLISHED, 1000)


def test_published_timesteps() -> None:
    assert sampling_timesteps(PUBLISHED, 25) == list(range(961, 0, -40))
    assert sampling_timesteps(PUBLISHED, 6) == [831, 665, 499, 333, 167, 1]
    assert sampling_timesteps(PUBLISHED, 4, spacing="trailing") == [999, 749, 499, 249]
    assert sampling_timesteps(PUBLISHED, 4, spacing="linspace") == [999, 666, 333, 0]
    assert inversion_timesteps(PUBLISHED, until=201) == list(range(1, 202))
    assert inversion_timesteps(PUBLISHED, until=201, stride=4) == list(range(1, 202, 4))


@given(configs(), st.data(), st.sampled_from(("leading", "trailing", "linspace")))
def test_sampling_descends_within_the_schedule(config: ScheduleConfig, data: st.DataObject, spacing) -> None:
    steps = data.draw(st.integers(1, config.train_steps - 1))
    timesteps = sampling_timesteps(config, steps, spacing=spacing)
    assert len(timesteps) == steps
    assert all(a > b for a, b in pairwise(timesteps))
    assert timesteps[0] < config.train_steps
    assert timesteps[-1] >= 0
    if spacing == "leading":
        assert timesteps[-1] == config.steps_offset
    if spacing == "trailing":
        assert timesteps[0] == config.train_steps - 1
    if spacing == "linspace" and steps > 1:
        assert (timesteps[0], timesteps[-1]) == (config.train_steps - 1, 0)


@given(configs(), st.data(), st.sampled_from(("leading", "trailing", "linspace")))
def test_sampling_steps_form_a_chain(config: ScheduleConfig, data: st.DataObject, spacing) -> None:
    steps = data.draw(st.integers(1, config.train_steps // 2))
    chain = sampling_pairs(config, steps, spacing=spacing)
    assert [step.t for step in chain] == sampling_timesteps(config, steps, spacing=spacing)
    assert [step.index for step in chain] == list(range(len(chain)))
    assert all(step.at == level(config, step.t) for step in chain)
    assert all(step.to == following.at for step, following in pairwise(chain))
    if spacing == "leading":  # a stride of two or more passes the offset of at most one
        assert chain[-1].to == level(config, -1)


@given(configs(), st.data())
def test_inversion_steps_form_a_chain(config: ScheduleConfig, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, config.train_steps // 2))
    count = data.draw(st.integers(0, (config.train_steps - 1 - config.steps_offset) // stride))
    until = config.steps_offset + count * stride
    chain = inversion_pairs(config, until=until, stride=stride)
    assert len(chain) == count + 1
    assert chain[-1].t == until
    assert all(step.to == level(config, step.t) for step in chain)
    assert all(step.to == following.at for step, following in pairwise(chain))
    assert chain[0].at == level(config, config.steps_offset - stride)


@given(st.integers(1, 200))
def test_inversion_is_sampling_backwards(steps: int) -> None:
    there = inversion_pairs(PUBLISHED, until=sampling_timesteps(PUBLISHED, steps)[0], stride=1000 // steps)
    back = sampling_pairs(PUBLISHED, steps)
    assert [(s.t, s.to, s.at) for s in reversed(there)] == [(s.t, s.at, s.to) for s in back]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sampling_timesteps(PUBLISHED, 0), r"steps = 0; choose 1\.\.1000"),
        (lambda: sampling_timesteps(PUBLISHED, 1001), r"steps = 1001; choose 1\.\.1000"),
        (lambda: sampling_timesteps(PUBLISHED, 1000), "starts at timestep 1000.*steps_offset at most 0"),
        (lambda: inversion_timesteps(PUBLISHED, until=0), r"until timestep 0; choose 1\.\.999"),
        (lambda: inversion_timesteps(PUBLISHED, until=1000), "until timestep 1000"),
        (lambda: inversion_timesteps(PUBLISHED, until=201, stride=3), "divide 200.*are 1, 2, 4, 5$"),
        (lambda: inversion_timesteps(PUBLISHED, until=201, stride=0), "stride 0"),
        (lambda: inversion_pairs(PUBLISHED, until=201, stride=201), "nearest that do are 40, 50, 100, 200$"),
    ],
)
def test_impossible_timesteps_are_refused(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


@given(st.integers(0, 99), TIMES, TIMES)
def test_transport_and_back(seed: int, t: int, u: int) -> None:
    z, eps, at, to = latent(seed), latent(seed + 100), level(PUBLISHED, t), level(PUBLISHED, u)
    assert_near(transport(transport(z, eps, at, to), eps, to, at), z)


@given(st.integers(0, 99), TIMES, TIMES, TIMES)
def test_transport_composes(seed: int, t: int, u: int, v: int) -> None:
    z, eps = latent(seed), latent(seed + 100)
    at, by, to = (level(PUBLISHED, time) for time in (t, u, v))
    direct = transport(z, eps, at, to)
    assert_near(transport(transport(z, eps, at, by), eps, by, to), direct)


@given(st.integers(0, 99), TIMES, TIMES)
def test_transport_along_the_true_noise(seed: int, t: int, u: int) -> None:
    x0, eps, at, to = latent(seed), latent(seed + 100), level(PUBLISHED, t), level(PUBLISHED, u)
    z = add_noise(x0, eps, at)
    assert_near(transport(z, eps, at, to), add_noise(x0, eps, to))
    assert_near(transport(z, eps, at, CLEAN), x0)


@given(st.integers(0, 99), TIMES, st.sampled_from((1.0, 0.7)))
def test_v_contains_the_noise(seed: int, t: int, scale: float) -> None:
    x0, eps, at = latent(seed), latent(seed + 100), level(replace(PUBLISHED, x0_scale=scale), t)
    v = at.signal * eps - at.noise * x0
    assert_near(noise_from_v(v, add_noise(x0, eps, at), at), eps)


def test_transport_by_hand() -> None:
    z, eps = torch.tensor([2.0]), torch.tensor([0.5])
    # x0 = (2 - 0.8 * 0.5) / 0.6 = 8/3; then 0.8 * 8/3 + 0.6 * 0.5 = 2.43333
    assert transport(z, eps, Level(0.6, 0.8), Level(0.8, 0.6)).item() == pytest.approx(2.4333333)


@given(st.integers(0, 99), TIMES, TIMES)
def test_ddim_without_eta_is_transport(seed: int, t: int, u: int) -> None:
    z, eps, at, to = latent(seed), latent(seed + 100), level(PUBLISHED, t), level(PUBLISHED, u)
    assert torch.equal(ddim_step(z, eps, at, to), transport(z, eps, at, to))


@given(st.integers(40, 999), st.floats(0.05, 1.0))
def test_eta_keeps_the_noise_level(t: int, eta: float) -> None:
    at, to = level(PUBLISHED, t), level(PUBLISHED, t - 40)
    eps = latent(0, 20000)
    z = ddim_step(at.noise * eps, eps, at, to, eta=eta, generator=torch.Generator().manual_seed(1))
    # the standard deviation of 20000 draws is known to 1 / sqrt(40000) = 0.005; four times that
    assert z.std().item() == pytest.approx(to.noise, rel=0.02)
    assert not torch.allclose(z, transport(at.noise * eps, eps, at, to))


def test_eta_one_is_the_ddpm_posterior() -> None:
    """Ho et al. Eq. 7: mean and variance of q(z_s | z_t, x0), for x0 predicted from eps."""
    t, a_t, a_s = 500, *alphas_cumprod(PUBLISHED)[[500, 460]].tolist()
    at, to = level(PUBLISHED, t), level(PUBLISHED, 460)
    z, eps = latent(0, 5), latent(1, 5)
    x0 = (z - at.noise * eps) / at.signal
    alpha = a_t / a_s
    mean = a_s**0.5 * (1 - alpha) / (1 - a_t) * x0 + alpha**0.5 * (1 - a_s) / (1 - a_t) * z
    variance = (1 - a_s) / (1 - a_t) * (1 - alpha)
    noise = torch.randn(5, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    stepped = ddim_step(z, eps, at, to, eta=1.0, generator=torch.Generator().manual_seed(7))
    assert_near(stepped, mean + variance**0.5 * noise)


def test_eta_draws_from_its_generator_only() -> None:
    z, eps, at, to = latent(0), latent(1), level(PUBLISHED, 500), level(PUBLISHED, 460)
    before = torch.get_rng_state()
    first, again = (ddim_step(z, eps, at, to, eta=0.5, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)


def test_eta_is_checked() -> None:
    z, low, high = latent(0), level(PUBLISHED, 460), level(PUBLISHED, 500)
    with pytest.raises(InputError, match="generator"):
        ddim_step(z, z, high, low, eta=0.5)
    with pytest.raises(InputError, match="less noise"):
        ddim_step(z, z, low, high, eta=0.5, generator=torch.Generator())
    with pytest.raises(InputError, match=r"eta = 1\.5; choose 0"):
        ddim_step(z, z, high, low, eta=1.5, generator=torch.Generator())


@given(st.integers(0, 99), st.floats(-3, 12))
def test_guidance(seed: int, scale: float) -> None:
    uncond, cond = latent(seed), latent(seed + 100)
    assert_near(guided(uncond, cond, scale), (1 - scale) * uncond + scale * cond)
    assert torch.equal(guided(uncond, cond, 0.0), uncond)
    assert torch.equal(guided(uncond, uncond, scale), uncond)
