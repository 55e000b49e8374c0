import hashlib
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from anyi2v.errors import AnyI2VWarning, InputError
from anyi2v.images import conditions
from anyi2v.images.conditions import Layer, Look, compose, edges, load_condition, load_mask, render
from anyi2v.images.fit import fit_image, plan
from anyi2v.images.media import from_bytes, load_image, to_bytes, write_image
from anyi2v.images.raster import Camera, draw


def some(seed: int, height: int = 12, width: int = 20) -> Tensor:
    """An image of 8-bit values."""
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed)) / 255


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two images of one size, a mask of the right half, a cloud of points."""
    for name, seed in (("a", 1), ("b", 2)):
        write_image(tmp_path / f"{name}.png", some(seed))
    right = np.zeros((12, 20), dtype=np.uint8)
    right[:, 10:] = 255
    Image.fromarray(right).save(tmp_path / "right.png")
    np.save(tmp_path / "cloud.npy", np.random.default_rng(0).random((30, 3)))
    return tmp_path


masks = st.integers(0, 99).map(lambda seed: some(seed)[0])
binary = masks.map(torch.round)


@given(binary)
def test_a_mask_chooses_between_the_layers(mask: Tensor) -> None:
    picture = compose([(some(1), None), (some(2), mask)])
    assert torch.allclose(picture, torch.where(mask.bool(), some(2), some(1)), atol=1e-6)


@given(masks)
def test_layers_that_hide_nothing_or_all(mask: Tensor) -> None:
    below = compose([(some(1), None), (some(2), mask)])
    zeros, ones = torch.zeros_like(mask), torch.ones_like(mask)
    assert torch.equal(compose([(some(1), None), (some(2), mask), (some(3), zeros)]), below)
    # picture + (image - picture) is rounded
    assert torch.allclose(compose([(some(1), None), (some(2), mask), (some(3), ones)]), some(3), atol=1e-6)
    assert torch.equal(compose([(some(1), None), (some(2), mask), (some(3), None)]), some(3))
    assert torch.allclose(compose([(some(1), None), (some(1), mask)]), some(1), atol=1e-6)
    assert 0 <= below.min() <= below.max() <= 1


def test_where_nothing_covers_is_paper() -> None:
    assert torch.equal(compose([(torch.zeros(3, 4, 4), torch.zeros(4, 4))]), torch.ones(3, 4, 4))


def test_layers_that_do_not_fit_together() -> None:
    with pytest.raises(InputError, match=r"layer 2: its image has shape \(3, 4, 4\); it must be \(3, 4, 5\)"):
        compose([(torch.zeros(3, 4, 5), None), (torch.zeros(3, 4, 4), None)])
    with pytest.raises(InputError, match=r"layer 1: its mask has shape \(4, 4\); it must be \(4, 5\)"):
        compose([(torch.zeros(3, 4, 5), torch.zeros(4, 4))])
    with pytest.raises(InputError, match="no layers"):
        compose([])
    with pytest.raises(InputError, match="layer 1: the image's values are 2 to 2"):
        compose([(torch.full((3, 4, 4), 2.0), None)])
    for mask in (torch.full((4, 4), 255.0), torch.full((4, 4), torch.nan), torch.ones(4, 4, dtype=torch.uint8)):
        with pytest.raises(InputError, match=r"layer 1: its mask is .* it must be float in"):
            compose([(torch.zeros(3, 4, 4), mask)])


@pytest.mark.parametrize("mode", ["crop", "pad", "stretch"])
def test_one_image_is_fitted_as_ever(files: Path, mode: str) -> None:
    picture, fit = load_condition([Layer(files / "a.png")], 16, 16, fit=mode)  # pyright: ignore[reportArgumentType]
    expected, place = fit_image(load_image(files / "a.png"), 16, 16, mode)  # pyright: ignore[reportArgumentType]
    assert torch.equal(picture, from_bytes(to_bytes(expected)))
    assert fit == place


def test_layers_of_files(files: Path) -> None:
    layers = [Layer(files / "a.png"), Layer(files / "b.png", files / "right.png")]
    picture, _ = load_condition(layers, 20, 12)
    assert torch.equal(picture[..., :10], some(1)[..., :10])
    assert torch.equal(picture[..., 10:], some(2)[..., 10:])
    # the mask goes where its image goes
    picture, fit = load_condition(layers, 40, 48, fit="pad")
    assert fit == plan((20, 12), 40, 48, "pad")
    lower, upper = (fit_image(some(seed), 40, 48, "pad")[0] for seed in (1, 2))
    assert (picture[:, 13:35, :18] - lower[:, 13:35, :18]).abs().max() <= 0.5 / 255 + 1e-6
    assert (picture[:, 13:35, 22:] - upper[:, 13:35, 22:]).abs().max() <= 0.5 / 255 + 1e-6


def test_geometry_among_layers(files: Path) -> None:
    cloud = files / "cloud.npy"
    picture, fit = load_condition([Layer(files / "a.png"), Layer(cloud, files / "right.png")], 16, 16)
    assert fit == plan((20, 12), 16, 16)
    assert torch.equal(picture[..., 10:], from_bytes(to_bytes(render(cloud, 16, 16)))[..., 10:])
    alone, fit = load_condition([Layer(cloud)], 16, 8, look=Look(style="depth"))
    assert fit == plan((16, 8), 16, 8)
    assert torch.equal(alone, from_bytes(to_bytes(render(cloud, 16, 8, Look(style="depth")))))


def test_render_is_load_and_draw(files: Path) -> None:
    shape = conditions.load_geometry(files / "cloud.npy", up="z")
    look = Look(style="normal", camera=Camera(10, 20, 4), up="z", background=(0, 0, 0))
    drawn = draw(shape.vertices, shape.faces, 24, 16, style="normal", camera=look.camera, background=(0, 0, 0))
    assert torch.equal(render(files / "cloud.npy", 24, 16, look), drawn)


def test_equal_file_and_look_give_equal_bytes(files: Path) -> None:
    hashes = set()
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        hashes.add(hashlib.sha256(to_bytes(render(files / "cloud.npy", 48, 32)).tobytes()).hexdigest())
    torch.set_num_threads(1)
    assert len(hashes) == 1


def test_masks(tmp_path: Path) -> None:
    strokes = np.zeros((1, 3, 4), dtype=np.uint8)
    strokes[0, 1:] = (255, 255, 255, 255), (0, 0, 0, 255)
    Image.fromarray(strokes).save(tmp_path / "m.png")
    assert load_mask(tmp_path / "m.png").tolist() == [[0, 1, 0]]
    Image.new("RGBA", (4, 4)).save(tmp_path / "black.png")
    with pytest.raises(InputError, match=r"black\.png is black everywhere, so its layer is invisible"):
        load_mask(tmp_path / "black.png")


def test_what_is_wrong_about_layers_is_named(files: Path) -> None:
    bottom = Layer(files / "a.png")
    write_image(files / "small.png", torch.ones(3, 4, 4))
    for layers, message in (
        ([], "no layers"),
        ([bottom, Layer(files / "b.png")], r"layer 2 \(.*b.png\) needs a mask: write .*b.png:mask.png"),
        ([bottom, Layer(files / "b.png", files / "nix.png")], "cannot read image .*nix.png"),
        ([Layer(files / "nix.png")], "cannot read image .*nix.png"),
        (
            [bottom, Layer(files / "b.png", files / "small.png")],
            "mask .*small.png has 4x4 px, but .*b.png has 20x12; they must have the same size",
        ),
    ):
        with pytest.raises(InputError, match=message):
            load_condition(layers, 16, 16)


def test_texts_of_layers(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Layer.parse("a.png") == Layer(Path("a.png"))
    assert Layer.parse("a.png:b.png") == Layer(Path("a.png"), Path("b.png"))
    assert Layer.parse("C:/a.png:b.png") == Layer(Path("C:/a.png"), Path("b.png"))
    monkeypatch.chdir(files)
    Path("x:y.png").touch()
    assert Layer.parse("x:y.png") == Layer(Path("x:y.png"))
    for text in ("a.png:", ":a.png", ":"):
        with pytest.raises(InputError, match=r"write image\.png, or image\.png:mask\.png"):
            Layer.parse(text)


def test_colons_of_names_and_of_drives_are_no_masks(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, path, mask in (
        (r"C:\a.png", r"C:\a.png", None),
        (r"C:\a.png:D:\m.png", r"C:\a.png", r"D:\m.png"),
        (r"a.png:D:\m.png", "a.png", r"D:\m.png"),
        ("c:/a.png:m.png", "c:/a.png", "m.png"),
        ("c:m.png", "c", "m.png"),  # a drive has a slash behind it
    ):
        assert Layer.parse(text) == Layer(Path(path), None if mask is None else Path(mask)), text
    monkeypatch.chdir(files)
    for name in ("x:y.png", "m:1:2.png"):
        Path(name).touch()
    assert Layer.parse("x:y.png:m:1:2.png") == Layer(Path("x:y.png"), Path("m:1:2.png"))
    assert Layer.parse("a.png:m:1:2.png") == Layer(Path("a.png"), Path("m:1:2.png"))
    assert Layer.parse("x:y.png:right.png") == Layer(Path("x:y.png"), Path("right.png"))
    assert Layer.parse("a" * 300 + ":b.png") == Layer(Path("a" * 300), Path("b.png"))


def test_images_are_stretched_and_masks_are_not(files: Path) -> None:
    low = np.full((12, 20), 100, dtype=np.uint8)
    low[:, :10] = 120
    Image.fromarray(low).save(files / "low.png")
    half = np.full((12, 20), 128, dtype=np.uint8)
    half[:, :10] = 255
    Image.fromarray(half).save(files / "half.png")
    layers = [Layer(files / "low.png"), Layer(files / "low.png", files / "half.png")]
    with pytest.warns(AnyI2VWarning, match=r"low\.png only has values from 100 to 120 of 255"):
        plain, _ = load_condition(layers, 20, 12)
    assert plain.aminmax() == (torch.tensor(100 / 255), torch.tensor(120 / 255))
    picture, _ = load_condition(layers, 20, 12, stretch=True)
    assert (picture[..., :10] == 1).all() and (picture[..., 10:] == 0).all()
    # the second layer alone, over paper, at half of its mask
    alone, _ = load_condition(layers[1:], 20, 12, stretch=True)
    assert alone[0, 0, 15] == pytest.approx(127 / 255, abs=1 / 255)


def test_masks_of_0_and_1_are_named(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).save(tmp_path / "m.png")
    with pytest.warns(AnyI2VWarning, match=r"mask .*m\.png has values up to 1 of 255 only") as caught:
        load_mask(tmp_path / "m.png")
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("a.gltf", "export it as .glb, which holds everything"),
        ("a.FBX", "a .fbx file is not supported: export it as .glb or .obj"),
        ("a.pcd", "convert it to .ply or .xyz"),
    ],
)
def test_meshes_of_other_kinds_are_named_with_the_way_out(tmp_path: Path, name: str, way_out: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    for load in (lambda: load_condition([Layer(tmp_path / name)], 8, 8), lambda: render(tmp_path / name, 8, 8)):
        with pytest.raises(InputError, match=f"cannot read .*{name}: .*{way_out}"):
            load()


needs_skimage = pytest.mark.skipif(
    conditions.find_spec("skimage") is None, reason="scikit-image is not installed: pip install 'anyi2v[edges]'"
)


@needs_skimage
def test_edges_lie_where_the_brightness_changes() -> None:
    image = torch.zeros(3, 40, 40)
    image[:, 10:30, 10:30] = 1
    lines = edges(image)
    assert set(lines.unique().tolist()) == {0, 1}
    assert torch.equal(lines[0], lines[2])
    rows, columns = torch.nonzero(lines[0], as_tuple=True)
    # within a pixel of the square's outline, which is seen all around
    from_outline = torch.maximum((rows - 19.5).abs(), (columns - 19.5).abs()) - 10
    assert from_outline.abs().max() <= 1
    assert 70 <= len(rows) <= 160


@needs_skimage
def test_edges_of_files(files: Path) -> None:
    image = torch.full((3, 20, 40), 0.3)
    image[:, 5:15, 10:20] = 0.9
    write_image(files / "square.png", image)
    picture, fit = load_condition([Layer(files / "square.png")], 40, 40, fit="pad", extract="edges")
    assert fit.target == (0, 10, 40, 30)
    assert not picture[:, :14].any()  # neither in the padding nor along its border
    assert not picture[:, 26:].any()
    assert torch.equal(picture[:, 10:30], edges(load_image(files / "square.png")))
    write_image(files / "flat.png", torch.full((3, 8, 8), 0.5))
    with pytest.raises(InputError, match=r"flat\.png has no edges to extract at 16x16 px"):
        load_condition([Layer(files / "flat.png")], 16, 16, extract="edges")


def test_without_embreex_the_way_out_is_named(files: Path) -> None:
    pytest.importorskip("trimesh", reason="trimesh is not installed: pip install 'anyi2v[mesh]'")
    (files / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    missing = patch.object(conditions, "find_spec", lambda name: None if name == "embreex" else name)
    with missing, pytest.raises(InputError, match=r"drawing .*a\.obj needs embreex: pip install 'anyi2v\[mesh\]'"):
        render(files / "a.obj", 8, 8)
    with missing:
        assert (render(files / "cloud.npy", 8, 8) < 1).any()  # points need nothing


def test_without_scikit_image_the_way_out_is_named() -> None:
    with (
        patch.object(conditions, "find_spec", lambda _: None),
        pytest.raises(InputError, match=r"edges need scikit-image: pip install 'anyi2v\[edges\]'"),
    ):
        edges(torch.zeros(3, 4, 4))
