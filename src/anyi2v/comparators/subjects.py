"""Tokens of the prompt that describe each object."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from anyi2v.backbone.config import TextConfig
from anyi2v.backbone.text import count_tokens
from anyi2v.errors import InputError
from anyi2v.tracks import Tracks


def subject_words(method: str, subjects: Sequence[str], tracks: Tracks, prompt: str) -> list[str]:
    """Return the words of each object: `subjects` in the order of the tracks, or the objects' names.

    Raises:
        InputError: the numbers of subjects and objects differ, or words are not in the prompt.
    """
    names = [track.name for track in tracks.objects]
    if subjects and len(subjects) != len(names):
        count = f"{len(subjects)} subjects for {len(names)} objects ({', '.join(names)})"
        raise InputError(f"{method}: {count}; give one for each")
    for name, words in zip(names, subjects or names, strict=True):
        if _span(words, prompt) is None:
            given = f"the subject {words!r}" if subjects else "its name"
            raise InputError(
                f"{method}: object {name!r}: {given} is not in the prompt {prompt!r}; name the words of each "
                f"object in the prompt, in the order of the tracks, by `subjects` (flag --{method}.subjects)"
            )
    return list(subjects or names)


def subject_tokens(config: TextConfig, prompt: str, words: str, embeddings: Mapping[str, Tensor]) -> list[int]:
    """Return the token positions of the first occurrence of `words` in the prompt; the begin token is at 0."""
    span = _span(words, prompt)
    assert span is not None, "the words are not in the prompt"
    first, behind = (count_tokens(config, prompt[:end], embeddings) + 1 for end in span)
    return list(range(first, behind))


def trailing_tokens(
    config: TextConfig, prompt: str, count: int, embeddings: Mapping[str, Tensor], *, count_words: bool
) -> list[int]:
    """Return the positions of the end token and the padding after it, `count` in all, or up to the end of the text.

    With `count_words`, they start at a position given by the number of whitespace-separated words before a ";".
    """
    before = len(prompt.split(";")[0].split(" ")) if count_words else count_tokens(config, prompt, embeddings)
    return list(range(before + 1, min(before + 1 + count, config.length)))


def _span(words: str, prompt: str) -> tuple[int, int] | None:
    """Find whole words in the prompt, ignoring case."""
    parts = [re.escape(part) for part in words.split()]
    pattern = r"\s+".join(parts)
    match = re.search(rf"(?<!\w){pattern}(?!\w)", prompt, re.IGNORECASE) if parts else None
    return match.span() if match else None
