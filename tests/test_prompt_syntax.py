"""Other programs' prompt syntax is warned of, once and by name; ordinary prompts are not."""

import warnings

import pytest
import torch

import anyi2v
from anyi2v.backbone.config import TextConfig
from anyi2v.backbone.networks import Backbone, build
from anyi2v.backbone.prompt_syntax import syntax
from anyi2v.errors import AnyI2VWarning
from anyi2v.tracks import Tracks

from .networks import SHORT, TINY, tiny_backbone


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a (red:1.4) ball", ["(red:1.4)"]),
        ("(a red ball:0.8), (blue : -1)", ["(a red ball:0.8)", "(blue : -1)"]),
        ("a ((red)) ball", ["((red))"]),
        ("a [red] ball", ["[red]"]),
        ("a [red|blue] ball, [a:b:0.5]", ["[red|blue]", "[a:b:0.5]"]),
        ("a {red} ball", ["{red}"]),
        ("a ball <lora:style:0.8>", ["<lora:style:0.8>"]),
        ("<lyco:x> <hypernet:y:1>", ["<lyco:x>", "<hypernet:y:1>"]),
        ("a ball BREAK a box", ["BREAK"]),
        ("a ball AND a box", ["AND"]),
        ("a ball, embedding:style", ["embedding:style"]),
        ("(red:1.4) BREAK <lora:x:1>", ["(red:1.4)", "BREAK", "<lora:x:1>"]),
        ("a cat (sitting)", []),
        ("a cat (sitting: relaxed)", []),
        ("a poster (16:9) at noon (12:30)", []),
        (r"a cat \(sitting:1.2\)", []),
        ("a cat and a dog, a break", []),
        ("A CAT AND A DOG, BREAK", []),
        ("SANDY BREAKFAST and BREAK-dance", []),
        ("time: 1.4, a <cat-toy>, 5 < 6 > 4", []),
        ("", []),
    ],
)
def test_only_true_syntax_is_found(prompt: str, found: list[str]) -> None:
    assert syntax(prompt) == found


def with_clip_words() -> Backbone:
    """The tiny backbone with CLIP's tokens, which take any text."""
    text = TextConfig(width=8, layers=1, heads=2, mlp_ratio=2.0, length=24)
    made = tiny_backbone()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = made.config
        config = type(config)(**{**config.__dict__, "text": text})
        tower = build(config).text.eval().requires_grad_(False)
    return Backbone(config, made.unet, made.vae, tower)


def test_a_job_warns_once_and_says_what_to_do_instead() -> None:
    backbone = with_clip_words()
    assert backbone.config.unet == TINY
    image, tracks = torch.rand(3, 16, 16), Tracks(16, 16, ())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        anyi2v.animate(
            backbone, image, "a (red:1.4) ball <lora:x:0.8>", tracks, config=SHORT, negative_prompt="a [blue] BREAK box"
        )
    (warning,) = [x for x in caught if issubclass(x.category, AnyI2VWarning)]
    text = str(warning.message)
    assert text.startswith("prompt syntax is not interpreted but read as plain words: '[blue]', 'BREAK', '(red:1.4)'")
    assert "--lora FILE:WEIGHT" in text and "loras=" in text


def test_names_of_embeddings_are_no_syntax() -> None:
    backbone = with_clip_words()
    backbone.embeddings = {"[V]": torch.zeros(1, 8), "style": torch.zeros(1, 8)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backbone.encode_text(["a [v] ball, embedding:style, a (plain) word"])
    with pytest.warns(AnyI2VWarning, match=r"'embedding:other'.*embeddings=\[file\]"):
        backbone.encode_text(["a [V] ball, embedding:other"])
    with pytest.warns(AnyI2VWarning, match="style:1.2"):
        backbone.encode_text(["a (style:1.2)"])
