"""Textual inversion: files of all kinds, names in prompts, and the states that the vectors make."""

import dataclasses
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import anyi2v
from anyi2v import cli
from anyi2v.backbone.config import TextConfig
from anyi2v.backbone.networks import state
from anyi2v.backbone.prompt_syntax import split, used
from anyi2v.backbone.text import shortened, tokenize
from anyi2v.checkpoints.checkpoint import save
from anyi2v.checkpoints.embeddings import read_embeddings
from anyi2v.errors import AnyI2VWarning, CheckpointError, InputError
from anyi2v.method.config import MethodConfig

from .networks import SHORT, tiny_backbone

pytestmark = pytest.mark.usefixtures("arrays_unchecked")  # whole jobs

TEXT = tiny_backbone().config.text
CLIP = TextConfig()
BEGIN, END = 49406, 49407


def vectors(count: int = 2, width: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def a1111(folder: Path, name: str = "style.pt", values: Tensor | None = None) -> Path:
    """As the web UI writes it, its own entries included."""
    values = vectors() if values is None else values
    data = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": values.clone().requires_grad_()},
        "name": "another name",
        "step": 500,
        "sd_checkpoint": None,
        "sd_checkpoint_name": "x",
    }
    torch.save(data, folder / name)
    return folder / name


def as_parameter(folder: Path) -> Path:
    torch.save({"string_to_param": {"*": torch.nn.Parameter(vectors())}}, folder / "style.pt")
    return folder / "style.pt"


def emb_params(folder: Path) -> Path:
    save_file({"emb_params": vectors().half()}, folder / "style.safetensors")
    return folder / "style.safetensors"


def diffusers(folder: Path) -> Path:
    torch.save(OrderedDict({"style": vectors()}), folder / "learned_embeds.bin")
    return folder / "learned_embeds.bin"


def diffusers_safe(folder: Path) -> Path:
    save_file({"style": vectors()}, folder / "learned_embeds.safetensors")
    return folder / "learned_embeds.safetensors"


def bundle(folder: Path) -> Path:
    lora = {"lora_unet_conv_in.lora_down.weight": torch.ones(1, 4, 3, 3)}
    save_file({"bundle_emb.style.string_to_param.*": vectors()} | lora, folder / "lora.safetensors")
    return folder / "lora.safetensors"


def named_tower(folder: Path) -> Path:
    save_file({"clip_l": vectors()}, folder / "style.safetensors")
    return folder / "style.safetensors"


@pytest.mark.parametrize(
    "write", [a1111, as_parameter, emb_params, diffusers, diffusers_safe, bundle, named_tower], ids=lambda f: f.__name__
)
def test_every_kind_of_file_gives_its_vectors_under_its_name(tmp_path: Path, write: Any) -> None:
    found = read_embeddings([write(tmp_path)], TEXT)
    assert found.keys() == {"style"}
    expected = vectors().half().float() if write is emb_params else vectors()
    assert torch.equal(found["style"], expected)
    assert found["style"].dtype == torch.float32 and not found["style"].requires_grad


def test_tokens_beside_the_vectors_may_be_tensors(tmp_path: Path) -> None:
    data = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": {"*": vectors()}}
    torch.save(data, tmp_path / "style.pt")
    assert torch.equal(read_embeddings([tmp_path / "style.pt"], TEXT)["style"], vectors())


def test_a_single_vector_may_lie_flat_and_a_file_may_hold_several_names(tmp_path: Path) -> None:
    torch.save({"<cat-toy>": vectors(1)[0], "<other>": vectors(2)}, tmp_path / "x.bin")
    found = read_embeddings([tmp_path / "x.bin"], TEXT)
    assert {name: tuple(x.shape) for name, x in found.items()} == {"<cat-toy>": (1, 8), "<other>": (2, 8)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"emb_params": torch.ones(2, 1024)}, r"'x' has vectors of width 1024.* needs 768; it was made for SD-2\.x"),
        ({"emb_params": torch.ones(2, 1280)}, "made for SDXL"),
        ({"emb_params": torch.ones(2, 100)}, "has vectors of 100 numbers.* reads 768$"),
        ({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}, "is an embedding for SDXL"),
        ({"clip_g": torch.ones(2, 1280)}, "is an embedding for SDXL"),
        (
            {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280), "t5xxl": torch.ones(2, 9)},
            "another base model",
        ),
        ({"bundle_emb.a.clip_l": torch.ones(2, 768), "bundle_emb.a.clip_l_out": torch.ones(2, 768)}, "another base"),
        ({"bundle_emb.a.clip_g": torch.ones(2, 1280)}, "is an embedding for SDXL"),
        ({"emb_params": torch.full((2, 768), torch.nan)}, "'x' has values that are not finite"),
        ({"emb_params": torch.ones(2, 768, dtype=torch.int32)}, "not a set of vectors"),
        ({"emb_params": torch.ones(0, 768)}, "has 0 vectors"),
        ({"emb_params": torch.ones(76, 768)}, "has 76 vectors; a prompt has room for 1 to 75"),
        ({" ": torch.ones(1, 768)}, "the name must not be blank"),
        ({"conv_in.weight": torch.ones(1, 1, 1, 1)}, "has no textual inversion embeddings"),
        (
            {"lora_unet_conv_in.lora_down.weight": torch.ones(1, 4)},
            "has no textual inversion embeddings.*looks like a LoRA",
        ),
        ({f"{i}": torch.ones(1, 768) for i in range(101)}, "has no textual inversion embeddings"),
        ({}, "has no textual inversion embeddings"),
    ],
)
def test_what_the_text_tower_cannot_read_is_refused_and_named(
    tmp_path: Path, tensors: dict[str, Tensor], message: str
) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=rf"x\.safetensors.*{message}"):
        read_embeddings([tmp_path / "x.safetensors"], CLIP)


def test_other_objects_in_pickles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for data, message in (
        ({"string_to_param": {"*": [1.0, 2.0]}}, "'x' is a list, not a set of vectors"),
        ({"name": "x"}, "has no textual inversion embeddings"),
        ({"inner": {"deeper": torch.ones(1, 8)}}, "has no textual inversion embeddings"),
        ([1, 2], "expected a dictionary of tensors by name"),
    ):
        torch.save(data, path)
        with pytest.raises(CheckpointError, match=message):
            read_embeddings([path], TEXT)
    with pytest.raises(InputError, match="there is no such file"):
        read_embeddings([tmp_path / "absent.pt"], TEXT)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


def test_pickles_never_run_code(tmp_path: Path) -> None:
    torch.save({"string_to_param": {"*": vectors()}, "x": Trap(tmp_path / "trace")}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="contains code"):
        read_embeddings([tmp_path / "x.pt"], TEXT)
    assert not (tmp_path / "trace").exists()


def test_two_embeddings_of_one_name_are_refused(tmp_path: Path) -> None:
    first, second = a1111(tmp_path, "style.pt"), a1111(tmp_path, "STYLE.bin")
    with pytest.raises(InputError, match=r"two embeddings are named 'STYLE': in .*style\.pt and in .*STYLE\.bin"):
        read_embeddings([first, second], TEXT)
    with pytest.raises(InputError, match="two embeddings"):
        read_embeddings([first, first], TEXT)


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a photo of style", ["a photo of ", "*style", ""]),
        ("Style, STYLE", ["", "*style", ", ", "*style", ""]),
        ("stylish freestyle style2", ["stylish freestyle style2"]),
        ("embedding:style on", ["", "*style", " on"]),
        ("a <cat-toy>.", ["a ", "*<cat-toy>", "."]),
        ("a<cat-toy>b", ["a", "*<cat-toy>", "b"]),
        ("my style 2, my style", ["", "*my style 2", ", ", "*my style", ""]),
        ("", [""]),
    ],
)
def test_names_are_found_as_words_of_their_own(prompt: str, pieces: list[str]) -> None:
    names = ["style", "<cat-toy>", "my style", "my style 2"]
    assert [text or f"*{name}" if name or text else "" for text, name in split(prompt, names)] == pieces
    assert used([prompt], names) == {piece[1:] for piece in pieces if piece.startswith("*")}


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=30), names=st.lists(st.text("ab<>()[]\\.^$ -", min_size=1, max_size=4), max_size=3))
def test_no_letter_of_a_prompt_is_lost(text: str, names: list[str]) -> None:
    pieces = list(split(text, names))
    rest = text.lower()
    for piece, name in pieces:
        assert rest.startswith((piece or name).lower())
        rest = rest[len(piece or name) :]
    assert not rest or "embedding:" in text


def test_an_embedding_takes_as_many_places_as_it_has_vectors() -> None:
    found = {"one": torch.zeros(1, 768), "three": torch.zeros(3, 768)}
    (ids,) = tokenize(CLIP, ["a photo of Three, a cat"], found).tolist()
    assert ids[:11] == [BEGIN, 320, 1125, 539, 49409, 49410, 49411, 267, 320, 2368, END]
    (plain,) = tokenize(CLIP, ["a photo of a cat"], found).tolist()
    assert plain == tokenize(CLIP, ["a photo of a cat"])[0].tolist()
    assert tokenize(TEXT, ["a ONE ball"], {"one": torch.zeros(1, 8)}).tolist() == [[1, 3, 7, 6, 2, 2]]


def test_vectors_count_towards_the_length_of_a_prompt() -> None:
    found = {"long": torch.zeros(74, 768)}
    assert tokenize(CLIP, ["cat long"], found)[0, -1] == END
    with pytest.raises(InputError, match="has 78 tokens"):
        tokenize(CLIP, ["cat long cat"], found)
    assert shortened(CLIP, "cat long cat", found) == ("cat long", "cat")


@torch.no_grad()
def test_the_states_are_those_of_a_vocabulary_with_these_rows(tmp_path: Path) -> None:
    """A tower whose table has the vectors as further rows."""
    save(tiny_backbone(), tmp_path / "tiny.safetensors")
    backbone = anyi2v.load(tmp_path / "tiny.safetensors", embeddings=[a1111(tmp_path)])
    larger = anyi2v.load(tmp_path / "tiny.safetensors").text
    larger.token_embedding = torch.nn.Embedding.from_pretrained(torch.cat([larger.token_embedding.weight, vectors()]))
    prompts = ["a style ball", "red ball"]
    expected = larger(torch.tensor([[1, 3, 7, 8, 6, 2], [1, 4, 6, 2, 2, 2]]))
    assert torch.equal(backbone.encode_text(prompts), expected)
    assert torch.equal(backbone.encode_text(prompts[1:]), tiny_backbone().encode_text(prompts[1:]))
    # the checkpoint is as before
    assert state(backbone).keys() == state(tiny_backbone()).keys()
    half = backbone.to("cpu", torch.bfloat16).encode_text(prompts)
    assert half.dtype == torch.bfloat16 and (half.float() - expected).abs().max() < 0.1


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backbone of a short method, an image, and an embedding."""
    folder = tmp_path_factory.mktemp("files")
    defaults, short = MethodConfig().to_dict(), SHORT.to_dict()
    made = tiny_backbone()
    method = {key: short[key] for key in short if short[key] != defaults[key]}
    made.config = dataclasses.replace(made.config, method=method)
    save(made, folder / "tiny.safetensors")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / "image.png")
    a1111(folder)
    return folder


def animated(files: Path, out: Path, *more: str) -> int:
    usual = ["--image", str(files / "image.png"), "--backbone", str(files / "tiny.safetensors"), "--threads", "1"]
    return cli.main(["animate", *usual, "--dtype", "float32", "--out", str(out), *more])


def test_a_run_with_an_embedding_is_recorded_and_repeated_byte_for_byte(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = files / "style.pt"
    assert animated(files, tmp_path / "one", "--prompt", "a style ball", "--embedding", str(path)) == 0
    assert "warning" not in capsys.readouterr().err
    assert animated(files, tmp_path / "plain", "--prompt", "a ball") == 0
    videos = [(tmp_path / name / "video.gif").read_bytes() for name in ("one", "plain")]
    assert videos[0] != videos[1]
    (entry,) = json.loads((tmp_path / "one" / "run.json").read_text())["embeddings"]
    assert entry["name"] == str(path.resolve()) and len(entry["sha256"]) == 64
    record = str(tmp_path / "one" / "run.json")
    assert cli.main(["animate", "--repeat", record, "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "video.gif").read_bytes() == videos[0]


def test_an_exchanged_embedding_is_not_repeated(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = a1111(tmp_path, "mine.pt")
    assert animated(files, tmp_path / "one", "--prompt", "a mine ball", "--embedding", str(path)) == 0
    a1111(tmp_path, "mine.pt", vectors(2, seed=1))
    repeat = ["animate", "--repeat", str(tmp_path / "one" / "run.json"), "--out", str(tmp_path / "again")]
    assert cli.main(repeat) == 2
    assert "mine.pt is not the file" in capsys.readouterr().err
    # another one that was asked for replaces it
    other = a1111(tmp_path, "Mine.bin", vectors(2, seed=2))
    assert cli.main([*repeat, "--embedding", str(other)]) == 0
    (entry,) = json.loads((tmp_path / "again" / "run.json").read_text())["embeddings"]
    assert entry["name"] == str(other.resolve())


def test_an_embedding_that_no_prompt_names_is_warned_of(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--embedding", str(files / "style.pt"), "--embedding", str(a1111(tmp_path, "other.pt"))]
    assert animated(files, tmp_path / "out", "--prompt", "a ball", "--negative-prompt", "style", *more) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert line == "anyi2v: warning: no prompt uses the embedding 'other', so it has no effect"


def test_an_embedding_for_another_base_ends_before_any_work(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"emb_params": torch.ones(2, 1024)}, tmp_path / "x.safetensors")
    path = str(tmp_path / "x.safetensors")
    assert animated(files, tmp_path / "out", "--prompt", "a x ball", "--embedding", path) == 2
    assert "made for SD-2.x" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_lora_and_the_embeddings_in_it_are_given_as_both(tmp_path: Path) -> None:
    save(tiny_backbone(), tmp_path / "tiny.safetensors")
    lora = {"lora_unet_conv_in.lora_down.weight": torch.ones(1, 4, 3, 3)}
    lora |= {"lora_unet_conv_in.lora_up.weight": torch.ones(8, 1, 1, 1), "bundle_emb.style.clip_l": vectors()}
    save_file(lora, tmp_path / "lora.safetensors")
    path = tmp_path / "lora.safetensors"
    with pytest.warns(AnyI2VWarning, match="includes the embeddings 'style'"):
        backbone = anyi2v.load(tmp_path / "tiny.safetensors", loras=[(path, 1.0)], embeddings=[path])
    assert torch.equal(backbone.embeddings["style"], vectors())
    assert not torch.equal(backbone.unet.conv_in.weight, tiny_backbone().unet.conv_in.weight)
