"""The inner optimisation of the latents."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from anyi2v.errors import NumericsError
from anyi2v.method.alignment import align, feature_map, reduce
from anyi2v.method.crops import make_crops
from anyi2v.method.optimisation import alignment_gradient, graphed_reader, optimise_latents
from anyi2v.taps import Recorder, no_tap
from anyi2v.tracks import Track, Tracks

from .networks import QUERIES, SHORT, inputs, tiny_unet

UNET = tiny_unet().float()
CROPS = make_crops(
    Tracks(16, 16, (Track("a", tuple((1.0 + 3 * f, 2.0, 8.0 + 3 * f, 10.0) for f in range(3))),)), (16, 16), 3
)


def job() -> tuple[Tensor, int, Tensor]:
    z, t, text = inputs()
    return z.float(), t, text.float()


def optimise(**changes: object) -> tuple[Tensor, Tensor, list[float]]:
    z, t, text = job()
    config = replace(SHORT, **changes)  # type: ignore[arg-type]
    done = optimise_latents(UNET, z, t, text, no_tap, CROPS, config)
    return z, done.latents, done.losses


def test_truncated_gradient_equals_that_of_the_whole_pass() -> None:
    z, t, text = job()
    gradient, made = alignment_gradient(UNET, z, t, text, no_tap, CROPS, SHORT)
    recorder = Recorder(QUERIES)
    whole = z.clone().requires_grad_()
    UNET(whole, t, text, tap=recorder)
    features = [reduce(feature_map(name, recorder.seen[name]), SHORT.pca_dim) for name in QUERIES]
    expected = align(features, CROPS, [CROPS.maps(*x.shape[1:3]) for x in features]).loss
    assert torch.equal(made.loss, expected.detach())
    assert torch.equal(gradient, torch.autograd.grad(expected, whole)[0])


def test_loss_falls() -> None:
    _, _, losses = optimise(iterations=12, lr=0.02)
    assert losses[-1] < 0.8 * losses[0]


def test_first_update_is_a_step_against_the_gradients_sign() -> None:
    z, t, text = job()
    gradient, _ = alignment_gradient(UNET, z, t, text, no_tap, CROPS, SHORT)
    _, moved, _ = optimise(iterations=1, lr=0.01, weight_decay=0.1)
    expected = z * (1 - 0.01 * 0.1) - 0.01 * gradient / (gradient.abs() + 1e-8)
    # AdamW divides two rounded moments; at the smallest gradients its eps counts
    torch.testing.assert_close(moved, expected, rtol=0, atol=2e-5)


def test_state_lasts_a_step_or_an_iteration() -> None:
    kept, fresh = (optimise(iterations=3, optimiser_state=s)[1] for s in ("step", "iteration"))
    once = optimise(iterations=1, optimiser_state="step")[1]
    assert torch.equal(once, optimise(iterations=1, optimiser_state="iteration")[1])
    assert not torch.equal(kept, fresh)


def test_update_means_can_be_removed() -> None:
    z, moved, _ = optimise(iterations=1, remove_update_mean=True, weight_decay=0.0)
    means = (moved - z).mean((-1, -2))
    # float32 rounding of latents of order one
    assert means.abs().max() < 1e-6
    z, moved, _ = optimise(iterations=1, weight_decay=0.0)
    assert (moved - z).mean((-1, -2)).abs().max() > 1e-4


def test_hidden_states_can_be_aligned_too() -> None:
    z, moved, losses = optimise(align=("up_blocks.1.resnets.0.hidden",))
    assert losses[-1] > 0
    assert not torch.equal(z, moved)


def test_latents_are_not_changed_in_place() -> None:
    z, t, text = job()
    before = z.clone()
    optimise_latents(UNET, z, t, text, no_tap, CROPS, SHORT)
    assert torch.equal(z, before)


def test_masks_are_those_of_the_last_iteration_and_progress_is_told() -> None:
    z, t, text = job()
    reports: list[int] = []
    done = optimise_latents(UNET, z, t, text, no_tap, CROPS, replace(SHORT, iterations=3), report=reports.append)
    assert reports == [1, 1, 1]
    before = optimise_latents(UNET, z, t, text, no_tap, CROPS, replace(SHORT, iterations=2)).latents
    assert torch.equal(done.masks, alignment_gradient(UNET, before, t, text, no_tap, CROPS, SHORT)[1].masks)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("changes", [{}, {"pca_dim": None}, {"pca_solver": "lowrank"}, {"mask": "none"}])
def test_features_that_are_not_finite_are_reported_by_name(value: float, changes: dict[str, object]) -> None:
    """Not as the failure to converge of the PCA's eigenvalue solver."""
    z, t, text = job()
    z[0, 1, 0, 0, 0] = value
    config, generator = replace(SHORT, **changes), torch.Generator()  # type: ignore[arg-type]
    place = r"stage optimisation, step 7 \(timestep 301\), iteration 0: layer up_blocks\.1\.attentions\.0\.query, .*"
    with pytest.raises(NumericsError, match=place + r"object 1 \('a'\); first in layer conv_in, frame 2;"):
        optimise_latents(UNET, z, t, text, no_tap, CROPS, config, generator=generator, step=7)


class Questions(TorchDispatchMode):
    """Counts how often the host asks whether something is so, for which it has to wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("iterations", [1, 4])
def test_an_iteration_asks_twice_whether_all_is_finite(iterations: int) -> None:
    """The features before the PCA, which could not do without, and the rest after the update."""
    with Questions() as questions:
        optimise(iterations=iterations)
    assert questions.count == 2 * iterations


def test_a_gradient_that_is_not_finite_is_reported_with_its_place() -> None:
    def edit(name: str, x: Tensor) -> Tensor:
        # adds nothing, but the square root's derivative at zero is infinite
        return x + (0 * x).sqrt() if name == "conv_in" else x

    z, t, text = job()
    with pytest.raises(NumericsError, match=r"gradient .* timestep 301, iteration 0: frames 1, 2, 3 of the latents"):
        optimise_latents(UNET, z, t, text, edit, CROPS, SHORT)


def test_a_reader_of_the_same_pass_changes_nothing() -> None:
    """On a GPU that is a graph (tests/test_gpu.py); on a CPU there is none."""
    z, t, text = job()
    assert graphed_reader(UNET, z, text, no_tap, SHORT) is None
    seen = []

    def reader(z: Tensor, timesteps: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        recorder = Recorder(QUERIES)
        UNET(z, timesteps, text, tap=recorder)
        seen.append(timesteps.item())
        return tuple(recorder.seen[name] for name in QUERIES)

    gradient, made = alignment_gradient(UNET, z, t, text, no_tap, CROPS, SHORT, reader=reader)
    expected = alignment_gradient(UNET, z, t, text, no_tap, CROPS, SHORT)
    assert torch.equal(gradient, expected[0])
    for a, b in zip(made, expected[1], strict=True):
        assert torch.equal(a, b)
    done = optimise_latents(UNET, z, t, text, no_tap, CROPS, SHORT, reader=reader)
    assert torch.equal(done.latents, optimise_latents(UNET, z, t, text, no_tap, CROPS, SHORT).latents)
    assert seen == [t] * (1 + SHORT.iterations)


def test_a_reader_is_left_out_where_taps_watch() -> None:
    z, t, text = job()

    def reader(*_: Tensor) -> tuple[Tensor, ...]:
        raise AssertionError("a recorded pass cannot be watched")

    names: set[str] = set()

    def tap(name: str, x: Tensor) -> Tensor:
        names.add(name)
        return x

    optimise_latents(UNET, z, t, text, no_tap, CROPS, SHORT, taps=lambda _: tap, reader=reader)
    assert set(QUERIES) <= names
