"""The inner optimisation of the latents."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from anyi2v.denoiser import Denoiser
from anyi2v.diffusion import CLEAN, Step
from anyi2v.errors import InputError, NumericsError
from anyi2v.method.alignment import Alignment, align, feature_map, reduce
from anyi2v.method.boxes import make_crops
from anyi2v.method.config import MethodConfig
from anyi2v.method.crops import Crops
from anyi2v.method.objective import FeatureAlignment
from anyi2v.method.optimisation import Optimised, alignment_gradient, optimise_latents
from anyi2v.taps import Recorder, Tap, no_tap
from anyi2v.tracks import Track, Tracks

from .networks import QUERIES, SHORT, inputs, tiny_unet

UNET = tiny_unet().float()
CROPS = make_crops(
    Tracks(16, 16, (Track("a", tuple((1.0 + 3 * f, 2.0, 8.0 + 3 * f, 10.0) for f in range(3))),)), (16, 16), 3
)


def job() -> tuple[Tensor, int, Tensor]:
    z, t, text = inputs()
    return z.float(), t, text.float()


def gradient_of(z: Tensor, t: int, text: Tensor, config: MethodConfig = SHORT) -> tuple[Tensor, Alignment]:
    denoiser = Denoiser(UNET, text, config=config)
    return alignment_gradient(denoiser, z, Step(0, t, CLEAN, CLEAN), FeatureAlignment(config), CROPS, no_tap)


def optimised(
    z: Tensor, t: int, text: Tensor, config: MethodConfig = SHORT, *, tap: Tap = no_tap, index: int = 0, **options: Any
) -> Optimised:
    denoiser, step = Denoiser(UNET, text, config=config), Step(index, t, CLEAN, CLEAN)
    objective = options.pop("objective", None) or FeatureAlignment(config, torch.Generator())
    return optimise_latents(denoiser, z, step, objective, CROPS, tap, config, **options)


def optimise(**changes: object) -> tuple[Tensor, Tensor, list[float]]:
    z, t, text = job()
    done = optimised(z, t, text, replace(SHORT, **changes))  # type: ignore[arg-type]
    return z, done.latents, done.losses


def test_truncated_gradient_equals_that_of_the_whole_pass() -> None:
    z, t, text = job()
    gradient, made = gradient_of(z, t, text)
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
    gradient, _ = gradient_of(z, t, text)
    _, moved, _ = optimise(iterations=1, lr=0.03, weight_decay=0.1)
    expected = z * (1 - 0.03 * 0.1) - 0.03 * gradient / (gradient.abs() + 1e-8)
    # AdamW divides two rounded moments; at the smallest gradients its eps counts
    torch.testing.assert_close(moved, expected, rtol=0, atol=6e-5)


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
    optimised(z, t, text)
    assert torch.equal(z, before)


def test_masks_are_those_of_the_last_iteration_and_progress_is_told() -> None:
    z, t, text = job()
    reports: list[int] = []
    done = optimised(z, t, text, replace(SHORT, iterations=3), report=reports.append)
    assert reports == [1, 1, 1]
    before = optimised(z, t, text, replace(SHORT, iterations=2)).latents
    assert torch.equal(done.masks, gradient_of(before, t, text)[1].masks)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("changes", [{}, {"pca_dim": None}, {"pca_solver": "lowrank"}, {"mask": "none"}])
def test_features_that_are_not_finite_are_reported_by_name(value: float, changes: dict[str, object]) -> None:
    """Not as the failure to converge of the PCA's eigenvalue solver."""
    z, t, text = job()
    z[0, 1, 0, 0, 0] = value
    config = replace(SHORT, **changes)  # type: ignore[arg-type]
    place = r"stage optimisation, step 7 \(timestep 301\), iteration 0: layer up_blocks\.1\.attentions\.0\.query, .*"
    with pytest.raises(NumericsError, match=place + r"object 1 \('a'\); first in layer conv_in, frame 2;"):
        optimised(z, t, text, config, index=7)


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
    with pytest.raises(
        NumericsError, match=r"gradient .* step 0 \(timestep 301\), iteration 0: frames 1, 2, 3 of the latents"
    ):
        optimised(z, t, text, tap=edit)


class Spread:
    """An objective of one's own: how much a layer differs from its mean over the frames."""

    points = (QUERIES[1],)

    def __call__(self, features: Mapping[str, Tensor], crops: Crops) -> Tensor:
        x = features[QUERIES[1]]
        return (x - x.mean(0)).square().mean()


def test_another_objective_is_minimised_and_has_no_masks() -> None:
    z, t, text = job()
    done = optimised(z, t, text, replace(SHORT, iterations=8), objective=Spread())
    assert done.losses[-1] < 0.8 * done.losses[0]
    assert done.masks.numel() == 0


def test_an_objective_that_does_not_depend_on_the_latents_is_refused() -> None:
    class Constant(Spread):
        def __call__(self, features: Mapping[str, Tensor], crops: Crops) -> Tensor:
            return torch.zeros(())

    with pytest.raises(InputError, match="does not depend on the features"):
        optimised(*job(), objective=Constant())


def test_an_objective_that_is_not_finite_is_reported() -> None:
    class Infinite(Spread):
        def __call__(self, features: Mapping[str, Tensor], crops: Crops) -> Tensor:
            return super().__call__(features, crops) / 0

    with pytest.raises(NumericsError, match="the alignment loss became NaN or infinite in stage optimisation, step 0"):
        optimised(*job(), objective=Infinite())


def test_the_solver_of_the_settings_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    lowrank = torch.pca_lowrank
    monkeypatch.setattr(torch, "pca_lowrank", lambda *args, **options: calls.append("") or lowrank(*args, **options))
    optimise(iterations=1, pca_solver="exact")
    assert not calls
    optimise(iterations=1, pca_solver="lowrank")
    assert len(calls) == len(QUERIES)
