"""The scenes' world, its latents and its judges, on two drawn objects in place of the package's."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torch import nn

from anyi2v.errors import InputError
from benchmarks import scenes_gates
from benchmarks.scenes import codec, features, measure, segmenter
from benchmarks.scenes.grounds import GROUNDS
from benchmarks.scenes.training import OBJECT_WEIGHT, Examples, Setup, Training, examples, sample
from benchmarks.scenes.world import OBJECTS, SCALES, Pictures, Placement, caption, load_sprites, paint, render

NAMES = ["rooster", "elephant"]
SETUP = Setup(32, 4, 12, (16, 32), (False, True), batch=2)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    (folder / "assets").mkdir()
    for name, colour in zip(NAMES, ("red", "blue"), strict=True):
        image = Image.new("RGBA", (64, 64))
        draw = ImageDraw.Draw(image)
        if name == "rooster":
            draw.ellipse((10, 10, 50, 50), fill=colour)
        else:
            draw.rectangle((30, 4, 40, 60), fill=colour)
        image.save(folder / "assets" / f"{OBJECTS[name]}.webp", lossless=True)
    return folder


@pytest.fixture(scope="module")
def pictures(package: Path) -> Pictures:
    return render(package, NAMES, 0, 300, 32, 8.0)


def test_sprites_fill_their_square(package: Path) -> None:
    disc, bar = load_sprites(package, NAMES)
    assert disc.shape == (4, 41, 41) and bar.shape == (4, 57, 57)
    assert bar[3].any(0).sum() == 11 and bar[3].any(1).all()


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1f413.webp is missing; unpack the npm package"):
        load_sprites(tmp_path, NAMES)


@settings(max_examples=20, deadline=None)
@given(x=st.floats(0.35, 0.65), y=st.floats(0.35, 0.65), scale=st.floats(*SCALES), angle=st.floats(-90, 90))
def test_objects_are_painted_where_they_are_placed(x: float, y: float, scale: float, angle: float) -> None:
    disc = torch.zeros(4, 65, 65)
    line = torch.arange(65) - 32
    disc[3] = (line[:, None] ** 2 + line**2 <= 32**2).float()
    alpha = paint(disc, Placement(x, y, scale, angle), 64)[3]
    centre = (torch.arange(64) + 0.5) / 64
    assert (alpha.sum(0) @ centre / alpha.sum()).item() == pytest.approx(x, abs=0.005)
    assert (alpha.sum(1) @ centre / alpha.sum()).item() == pytest.approx(y, abs=0.005)
    # the side is rounded to whole pixels in the drawing of twice the size
    assert alpha.sum().item() == pytest.approx(math.pi / 4 * (64 * scale) ** 2, rel=0.06)


def test_positive_angles_turn_clockwise() -> None:
    hand = torch.zeros(4, 65, 65)
    hand[:, :32, 30:35] = 1  # from the centre upwards
    right = paint(hand, Placement(0.5, 0.5, 0.6, 90), 64)[3]
    assert right[:, 32:].sum() > 0.95 * right.sum()


def test_pictures_depend_on_their_number_alone(package: Path, pictures: Pictures) -> None:
    again = render(package, NAMES, 7, 2, 32, 8.0)
    for part, whole in zip(again, pictures, strict=True):
        assert torch.equal(part, whole[7:9])
    assert set(pictures.objects.tolist()) == {0, 1} and len(set(pictures.grounds.tolist())) == len(GROUNDS)


@pytest.mark.parametrize("name", GROUNDS)
def test_grounds_are_pictures(name: str) -> None:
    first, second = (GROUNDS[name](torch.Generator().manual_seed(i), 64) for i in range(2))
    assert first.shape == (3, 64, 64)
    assert not torch.equal(first, second)
    for picture in (first, second):
        assert ((picture > -0.05) & (picture < 1.05)).float().mean() > 0.95


def test_captions_name_object_and_ground() -> None:
    assert caption("elephant", "sand") == "an elephant on sand"
    assert caption("rooster", "grass") == "a rooster on grass"


def test_all_components_restore_the_picture(pictures: Pictures) -> None:
    images = pictures.images[:50].float() / 127.5 - 1
    full = codec.fit(images, 4, 48)
    # float32 and deviations of the last components that are a thousandth of the first
    torch.testing.assert_close(full.decode(full.encode(images)), images, atol=2e-3, rtol=0)


def test_fewer_components_are_a_projection(pictures: Pictures) -> None:
    images = pictures.images[:50].float() / 127.5 - 1
    few = codec.fit(images, 4, 6, 0.75)
    latents = few.encode(images)
    torch.testing.assert_close(few.encode(few.decode(latents)), latents, atol=1e-4, rtol=1e-4)
    deviations = latents.movedim(1, 0).flatten(1).std(1)
    assert deviations[0].item() == pytest.approx(1, rel=0.01)
    assert (deviations.diff() < 0).all() and deviations[-1] > 0.1


def test_true_masks_fit_their_own_object(package: Path, pictures: Pictures) -> None:
    tried = [measure.templates(sprite, 32, (-8.0, -4.0, 0.0, 4.0, 8.0)) for sprite in load_sprites(package, NAMES)]
    images, masks = pictures.images[:30].float() / 255, pictures.alpha[:30] > 127
    found = measure.judge(images, masks, pictures.objects[:30], tried)
    assert (found.nearest == pictures.objects[:30]).all()
    assert found.iou.min() > 0.7 and found.iou.mean() > 0.88  # bars are two or three pixels wide here
    fitted = found.fit.painted[:, 3] > 0.5
    iou = (fitted & masks).sum((1, 2)) / (fitted | masks).sum((1, 2))
    torch.testing.assert_close(iou, found.iou)


def test_wrong_and_missing_outlines_are_far(package: Path, pictures: Pictures) -> None:
    discs = pictures.objects == 0
    images, masks = pictures.images[discs][:8].float() / 255, pictures.alpha[discs][:8] > 127
    disc, bar = (measure.templates(sprite, 32, (0.0,)) for sprite in load_sprites(package, NAMES))
    assert (measure.align(masks, bar).iou < 0.5).all()
    fit = measure.align(masks, disc)
    right = measure.distance(images, masks, fit)
    assert (right < 0.15).all()
    assert (measure.distance(1 - images, masks, fit) > 0.8).all()  # cyan instead of red
    assert (measure.distance(images, torch.zeros_like(masks), fit) == 1).all()


@pytest.fixture(scope="module")
def data(pictures: Pictures) -> Examples:
    return examples(pictures, NAMES, SETUP)


def test_the_object_counts_more(data: Examples, pictures: Pictures) -> None:
    torch.testing.assert_close(data.weights.mean((1, 2, 3)), torch.ones(300))
    cells = torch.nn.functional.max_pool2d(pictures.alpha[:, None].float(), 4) == 255
    most, least = data.weights.amax((1, 2, 3)), data.weights.amin((1, 2, 3))
    torch.testing.assert_close(data.weights[cells], most.repeat_interleave(cells.sum((1, 2, 3))))
    far = least < 1  # but for objects that fill the picture
    torch.testing.assert_close(most[far], least[far] * (1 + OBJECT_WEIGHT))
    assert far.float().mean() > 0.8


def test_training_goes_on_where_it_stopped_and_samples(data: Examples, tmp_path: Path) -> None:
    training = Training(SETUP, 0.01, tmp_path)
    before = training.loss(data, torch.Generator().manual_seed(0), validation=True)
    training.run(data)
    again = Training(SETUP, 0.02, tmp_path)
    assert again.step == training.step > 0 and again.seconds == training.seconds >= 0.6
    for ours, theirs in zip(again.average.parameters(), training.average.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    again.run(data)
    assert again.step > training.step
    assert again.loss(data, torch.Generator().manual_seed(0), validation=True) < before
    assert len((tmp_path / "record.jsonl").read_text().splitlines()) == 2
    texts = ["a rooster on sand", "an elephant on grass"]
    first, second = (sample(again.average, data.codec, texts, SETUP, seed=3, scale=2.0, steps=4) for _ in range(2))
    assert first.shape == (2, 3, 32, 32) and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, second)


def test_a_segmenter_tells_objects_from_ground(package: Path, pictures: Pictures) -> None:
    torch.manual_seed(0)
    network = segmenter.Segmenter()
    segmenter.train(network, pictures)
    held = render(package, NAMES, 1000, 30, 32, 8.0)
    masks, truth = network.masks(held.images.float() / 255), held.alpha > 127
    iou = (masks & truth).sum() / (masks | truth).sum()
    assert iou > 0.6  # 54 steps: nearly 0.8; all or nothing has less than 0.2


def test_the_nearest_render_by_features() -> None:
    renders = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    objects = torch.tensor([0, 0, 1, 2])
    noisy = renders + 0.05 * torch.randn(renders.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(features.nearest(nn.Flatten(), noisy, renders, objects), objects)


def test_outlines_are_the_border_of_a_mask() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 1:6, 2:6] = True
    border = scenes_gates.outline(mask)
    assert border.sum() == 14 and not border[0, 2:5, 3:5].any()


def test_a_gate_from_pictures_to_page(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scenes_gates.GATES, "a", (2, 0.0))
    monkeypatch.setitem(scenes_gates.SETUPS, "few", SETUP)
    monkeypatch.setattr(segmenter, "OTHER_OBJECTS", NAMES)
    monkeypatch.setattr(segmenter, "PICTURES", 32)
    args = scenes_gates.Args(
        "a", package, tmp_path / "scratch", minutes=0.01, pictures=300, samples=16, steps=2, out=tmp_path / "out"
    )
    with pytest.raises(InputError, match=r"--samples 3; at least 16"):
        scenes_gates.main(replace(args, samples=3))
    scenes_gates.main(args)
    record = json.loads((args.out / "gate_a_few.json").read_text())
    assert len(record["iou"]) == 16 and record["objects"] == NAMES and record["training"][-1]["step"] > 0
    assert record["renders"]["nearest_render"] > record["samples"]["mean_iou"] >= 0
    page = (args.out / "gate_a_few.md").read_text()
    assert page.startswith("# Gate (a): not passed") and "| samples | 0." in page
    with Image.open(args.out / "gate_a_few.png") as picture:
        assert picture.size == (8 * 32, 2 * 64)
