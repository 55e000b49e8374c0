"""Recordings C: one optimisation step of the published code with an exact K-Means."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from anyi2v.backbone.unet import record
from anyi2v.denoiser import Denoiser
from anyi2v.diffusion import CLEAN, Step
from anyi2v.method.alignment import align, feature_map, reduce
from anyi2v.method.boxes import make_crops
from anyi2v.method.config import AlignmentOptions
from anyi2v.method.crops import Crops
from anyi2v.method.objective import FeatureAlignment
from anyi2v.method.optimisation import alignment_gradient, optimise_latents

from . import recordings
from .recordings import Case, latents, relative

MASKS_EQUAL = 0.995
GRADIENT = 2e-5  # four times the float32 noise of the recorded gradient (4.8e-6 against float64)
LATENTS_WITHIN, LATENTS_EQUAL = 1e-4, 0.999  # the sign-like step flips where the gradient is near zero: 0.02


def make(case: Case) -> Crops:
    frames, height, width = (case.tensors["latents_in"].shape[i] for i in (2, 3, 4))
    config = recordings.method(case)
    tracks = recordings.tracks(case, (height, width))
    return make_crops(tracks, (2 * height, 2 * width), frames, first_box=config.first_box)


def recorded_mask(case: Case, crops: Crops, frame: int, number: int, like: Tensor) -> Tensor | None:
    """The recorded mask of one crop as a padded `l y x`, or None if the crop is not visible."""
    recorded = case.tensors.get(f"mask.f{frame}.o{number}")
    if recorded is None:
        return None
    mask = torch.zeros_like(like)
    mask[:, : recorded.shape[0], : recorded.shape[1]] = recorded.movedim(-1, 0).to(like.dtype)
    return mask


@pytest.mark.recordings("C")
def test_one_step_equals_the_recorded_one(case: Case, root: Path) -> None:
    config, crops = recordings.method(case), make(case)
    network, tap = recordings.unet(root, "v3"), recordings.injection(case, root)
    z, step = latents(case.tensors["latents_in"]), Step(0, case.meta["timestep"], CLEAN, CLEAN)
    denoiser, objective = Denoiser(network, case.text[1:], config=config), FeatureAlignment(config)

    gradient, made = alignment_gradient(denoiser, z, step, objective, crops, tap)
    masks = made.masks
    differing, total = 0, 0
    for o, boxes in enumerate(crops.boxes):
        for f in range(len(boxes)):
            expected = recorded_mask(case, crops, f, o, masks[:, o, f])
            (top, bottom), (left, right) = crops.seen(o, f)
            assert (expected is None) == (bottom == top or right == left)
            if expected is not None:
                differing += int((masks[:, o, f] != expected).sum())
                total += (bottom - top) * (right - left) * masks.shape[0]
    assert total
    assert differing <= (1 - MASKS_EQUAL) * total
    if differing == 0:
        assert relative(latents(gradient), case.tensors["grad"]) <= GRADIENT
        assert made.loss.item() == pytest.approx(case.meta["loss"], rel=1e-5)

    moved = optimise_latents(denoiser, z, step, objective, crops, tap, config_once(case)).latents
    close = (latents(moved) - case.tensors["latents_out"]).abs() <= LATENTS_WITHIN
    assert close.float().mean().item() >= LATENTS_EQUAL


def config_once(case: Case):
    from dataclasses import replace

    return replace(recordings.method(case), iterations=1)


@pytest.mark.recordings("C")
def test_recorded_queries_and_similarities(case: Case, root: Path) -> None:
    """Where the recording has them: the queries that were aligned, and the subspace of their PCA."""
    config = recordings.method(case)
    seen = record(
        recordings.unet(root, "v3"),
        config.align,
        latents(case.tensors["latents_in"]),
        case.meta["timestep"],
        case.text[1:],
        edit=recordings.injection(case, root),
    )
    for i, name in enumerate(config.align):
        feature = feature_map(name, seen[name])
        if f"pca{i}.query_f_h_w_c_flat" in case.tensors:
            # two forwards of float32 noise 6e-6 at unit scale
            error = (feature.flatten(0, 2) - case.tensors[f"pca{i}.query_f_h_w_c_flat"]).abs().max()
            assert error <= 5e-5
        if f"pca{i}.components" in case.tensors:
            theirs = case.tensors[f"pca{i}.components"]
            mean = case.tensors[f"pca{i}.mean"].flatten()
            ours = reduce(feature, config.pca_dim)
            projected = (feature.flatten(0, 2) - mean) @ theirs.T
            # bases differ by signs or rotations; distances from the mean inside the subspace do not
            assert relative(ours.flatten(0, 2).norm(dim=-1), projected.norm(dim=-1)) <= 1e-4


@pytest.mark.recordings("C")
def test_masks_from_recorded_queries_are_exactly_the_recorded_ones(case: Case, root: Path) -> None:
    """Without the network's rounding nothing is left that could move a pixel."""
    config, crops = recordings.method(case), make(case)
    if "pca0.query_f_h_w_c_flat" not in case.tensors:
        pytest.skip("this recording does not hold the queries")
    frames = case.tensors["latents_in"].shape[2]
    features = []
    for i in range(len(config.align)):
        flat = case.tensors[f"pca{i}.query_f_h_w_c_flat"]
        ratio = crops.lattice[0] / crops.lattice[1]
        height = round((flat.shape[0] / frames * ratio) ** 0.5)
        query = flat.view(frames, height, -1, flat.shape[-1])
        features.append(reduce(query, config.pca_dim))
    masks = align(features, crops, [crops.maps(*x.shape[1:3]) for x in features], AlignmentOptions.of(config)).masks
    for o, boxes in enumerate(crops.boxes):
        for f in range(len(boxes)):
            expected = recorded_mask(case, crops, f, o, masks[:, o, f])
            assert expected is None or torch.equal(masks[:, o, f], expected), (f, o)
