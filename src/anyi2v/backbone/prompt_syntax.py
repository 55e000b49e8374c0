"""Detection of other programs' prompt syntax, which is not interpreted here but warned about."""

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence

from anyi2v.errors import AnyI2VWarning

_SYNTAX = (
    # not a ratio or a time, (16:9) or (at 10:30); not \( and \), which are literal there too
    r"(?<!\\)\([^()]*[^()\d\s]\s*:\s*[-+]?(?:\d+\.?\d*|\.\d+)\s*\)",
    r"(?<!\\)\(\([^()]+\)+\)",
    r"(?<!\\)\[[^\[\]]+\]",
    r"(?<!\\)\{[^{}]+\}",
    r"<(?:lora|lyco|hypernet):[^<>]+>",
    r"\bembedding:\S+",
)
"""Weights, emphasis, alternatives, networks and embeddings, as in AUTOMATIC1111's web UI, ComfyUI and others."""
_CAPITALS = (r"(?<![\w-])BREAK(?![\w-])", r"(?<=\s)AND(?=\s+\S)")
"""Words with a special meaning there if capitalised."""


def warn_of_syntax(prompts: Sequence[str], embeddings: Iterable[str] = ()) -> None:
    """Issue one warning that quotes all syntax in prompts that other programs interpret.

    Args:
        prompts: as passed to the text tower.
        embeddings: names that are not searched for syntax.
    """
    names = list(embeddings)
    shown = {"": "", **{name: "x" if syntax(name) else name for name in names}}
    texts = ["".join(text + shown[name] for text, name in split(prompt, names)) for prompt in prompts]
    found = list(dict.fromkeys(piece for text in texts for piece in syntax(text)))
    if not found:
        return
    listed = ", ".join(repr(piece if len(piece) <= 40 else piece[:37] + "...") for piece in found[:5])
    message = f"prompt syntax is not interpreted but read as plain words: {listed}"
    if any(piece.startswith("<") for piece in found):
        message += (
            "; LoRAs are given as files: `anyi2v convert --lora FILE:WEIGHT`, or loras=[(file, weight)] in Python"
        )
    if any(piece.startswith("embedding:") for piece in found):
        message += "; embeddings are given as files: --embedding FILE, or embeddings=[file] in Python"
    warnings.warn(message, AnyI2VWarning, stacklevel=4)


def syntax(text: str) -> list[str]:
    """Return the pieces of a text that other programs would interpret, in order."""
    patterns = [*_SYNTAX, *(_CAPITALS if any(letter.islower() for letter in text) else ())]
    matches = [match for pattern in patterns for match in re.finditer(pattern, text)]
    return [match[0] for match in sorted(matches, key=lambda match: match.start())]


def split(prompt: str, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Split a prompt into pairs of plain text and embedding name, of which one is empty.

    A name matches case-insensitively, optionally after "embedding:", if it is not part of a longer word. Of two names
    that match at the same position, the longer one is taken.
    """
    names = sorted(names, key=len, reverse=True)
    forms = [rf"(?:(?<!\w)embedding:)?{_bounded(name)}" for name in names]
    end = 0
    for match in re.finditer("|".join(forms), prompt, re.IGNORECASE) if forms else ():
        assert match.lastindex is not None  # each form is one group
        yield prompt[end : match.start()], ""
        yield "", names[match.lastindex - 1]
        end = match.end()
    yield prompt[end:], ""


def _bounded(name: str) -> str:
    """Return a pattern that matches a name as a separate word, at each end that is a word character."""
    before, after = (
        edge if re.match(r"\w", letter) else "" for edge, letter in ((r"(?<!\w)", name[0]), (r"(?!\w)", name[-1]))
    )
    return f"{before}({re.escape(name)}){after}"


def used(prompts: Sequence[str], names: Iterable[str]) -> set[str]:
    """Return the embeddings that occur in any of the prompts."""
    names = list(names)
    return {name for prompt in prompts for _, name in split(prompt, names) if name}
