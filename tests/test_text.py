"""Tokens and the text tower."""

import dataclasses
import functools
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyi2v.backbone.config import TextConfig
from anyi2v.backbone.text import TextTower, tokenize
from anyi2v.errors import InputError

WORDS = ("<pad>", "<bos>", "<eos>", "a", "red", "blue", "circle", "square", "on", "navy", "background")
TINY = TextConfig(width=8, layers=2, heads=2, mlp_ratio=2.0, length=8, vocab_size=len(WORDS), words=WORDS)
CLIP = TextConfig()
END = 49407


def tiny_tower(config: TextConfig = TINY) -> TextTower:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tower = TextTower(config).double().eval().requires_grad_(False)
        # the tower's own initialisation is small; make every part count
        for parameter in tower.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.5)
    return tower


def test_whole_word_tokens_of_a_caption() -> None:
    ids = tokenize(TINY, ["a red circle", "a Red  circle on navy background", ""])
    assert ids.tolist() == [
        [1, 3, 4, 6, 2, 2, 2, 2],
        [1, 3, 4, 6, 8, 9, 10, 2],
        [1, 2, 2, 2, 2, 2, 2, 2],
    ]


@given(words=st.lists(st.sampled_from(WORDS[3:]), max_size=TINY.length - 2))
def test_whole_word_tokens_spell_the_prompt(words: list[str]) -> None:
    (ids,) = tokenize(TINY, [" ".join(words)]).tolist()
    assert [WORDS[i] for i in ids[: len(words) + 2]] == ["<bos>", *words, "<eos>"]
    assert set(ids[len(words) + 1 :]) == {2}


@given(word=st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=8))
def test_unknown_words_are_named(word: str) -> None:
    if word.lower() in WORDS[3:]:
        return
    with pytest.raises(InputError) as caught:
        tokenize(TINY, ["a red", f"a {word} circle"])
    assert repr(word.lower()) in str(caught.value)


def test_unknown_words_come_with_the_closest_known_ones() -> None:
    with pytest.raises(InputError, match=r"'circles'.* closest are circle"):
        tokenize(TINY, ["a red circles"])


def test_a_word_that_resembles_none_comes_with_all_words_alone() -> None:
    with pytest.raises(InputError, match=r"the word 'xyz' is not among the 8 that this backbone supports \(all: a red"):
        tokenize(TINY, ["xyz"])


@pytest.mark.parametrize("token", WORDS[:3])
def test_special_tokens_cannot_be_written(token: str) -> None:
    with pytest.raises(InputError, match=token):
        tokenize(TINY, [f"a {token}"])


def test_a_prompt_that_is_too_long_is_refused_not_cut() -> None:
    with pytest.raises(InputError, match=r"'a a a a a a a' has 9 tokens.* at most 8"):
        tokenize(TINY, [" ".join("a" * 7)])


def test_half_a_letter_is_refused_before_any_tokenizer_fails_on_it() -> None:
    with pytest.raises(InputError, match="unpaired surrogate"):
        tokenize(TextConfig(), ["a red \udcff"])


def test_byte_pairs_of_a_known_prompt() -> None:
    """The ids that CLIP's published vocabulary gives; then SD-1.x's padding with the end token."""
    ids = tokenize(CLIP, ["a photo of a cat", ""])
    assert ids[0].tolist() == [49406, 320, 1125, 539, 320, 2368] + 71 * [END]
    assert ids[1].tolist() == [49406] + 76 * [END]


@functools.cache
def open_clip_tokenizer():
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_byte_pairs_are_open_clips_but_for_the_padding(prompt: str) -> None:
    (ours,) = tokenize(CLIP, [prompt]).tolist()
    (theirs,) = open_clip_tokenizer()([prompt]).tolist()
    end = theirs.index(END)
    assert ours[: end + 1] == theirs[: end + 1]
    assert set(ours[end:]) == {END}


def test_75_byte_pairs_fit_and_76_do_not() -> None:
    assert tokenize(CLIP, ["cat " * 75])[0, -2:].tolist() == [2368, END]
    with pytest.raises(InputError, match=r"has 78 tokens.* at most 77"):
        tokenize(CLIP, ["cat " * 76])


def test_the_tower_fits_its_configuration() -> None:
    shapes = {key: tuple(tensor.shape) for key, tensor in tiny_tower().state_dict().items()}
    assert shapes["token_embedding.weight"] == (11, 8)
    assert shapes["positional_embedding"] == (8, 8)
    assert shapes["transformer.resblocks.1.mlp.c_fc.weight"] == (16, 8)
    assert not [key for key in shapes if "projection" in key or "resblocks.2" in key]


@given(
    prompt=st.lists(st.integers(0, 10), min_size=8, max_size=8),
    place=st.integers(0, 7),
    new=st.integers(0, 10),
)
@settings(max_examples=30, deadline=None)
def test_a_token_cannot_see_what_follows_it(prompt: list[int], place: int, new: int) -> None:
    tower = tiny_tower()
    changed = [*prompt[:place], new, *prompt[place + 1 :]]
    before, after = tower(torch.tensor([prompt, changed]))
    # float64 rounding
    assert torch.allclose(before[:place], after[:place], atol=1e-12)
    if new != prompt[place]:
        assert not torch.allclose(before[place:], after[place:], atol=1e-3)
    short = tower(torch.tensor([prompt[: place + 1]]))[0]
    assert torch.allclose(short, before[: place + 1], atol=1e-12)


def test_the_activation_is_configuration() -> None:
    quick, exact = tiny_tower(), tiny_tower(dataclasses.replace(TINY, quick_gelu=False))
    ids = tokenize(TINY, ["a red circle"])
    assert not torch.allclose(quick(ids), exact(ids), atol=1e-4)


def test_open_clip_is_imported_only_when_needed() -> None:
    code = "import sys, anyi2v.checkpoints.checkpoint; assert 'open_clip' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
