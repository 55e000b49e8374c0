"""Other programs' syntax in prompts. Here a prompt is words and nothing else; who writes such syntax is warned."""

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence

from anyi2v.errors import AnyI2VWarning

_SYNTAX = (
    # not a ratio or a time, (16:9) or (at 10:30); not \( and \), which are letters there too
    r"(?<!\\)\([^()]*[^()\d\s]\s*:\s*[-+]?(?:\d+\.?\d*|\.\d+)\s*\)",
    r"(?<!\\)\(\([^()]+\)+\)",
    r"(?<!\\)\[[^\[\]]+\]",
    r"(?<!\\)\{[^{}]+\}",
    r"<(?:lora|lyco|hypernet):[^<>]+>",
    r"\bembedding:\S+",
)
"""Weights, emphasis, alternatives, networks and embeddings, as in AUTOMATIC1111's web UI, ComfyUI and others."""
_CAPITALS = (r"(?<![\w-])BREAK(?![\w-])", r"(?<=\s)AND(?=\s+\S)")
"""Words that have a meaning there in capitals."""


def warn_of_syntax(prompts: Sequence[str], embeddings: Iterable[str] = ()) -> None:
    """Issues one warning if prompts hold syntax that other programs interpret; names all of it.

    Args:
        prompts: as the text tower gets them.
        embeddings: names that are not searched for syntax.
    """
    names = list(embeddings)
    shown = {"": "", **{name: "x" if syntax(name) else name for name in names}}
    texts = ["".join(text + shown[name] for text, name in split(prompt, names)) for prompt in prompts]
    found = list(dict.fromkeys(piece for text in texts for piece in syntax(text)))
    if not found:
        return
    listed = ", ".join(repr(piece if len(piece) <= 40 else piece[:37] + "...") for piece in found[:5])
    message = f"prompt syntax is not interpreted, but read as plain words: {listed}"
    if any(piece.startswith("<") for piece in found):
        message += (
            "; LoRAs are given as files: `anyi2v convert --lora FILE:WEIGHT`, or loras=[(file, weight)] in Python"
        )
    if any(piece.startswith("embedding:") for piece in found):
        message += "; embeddings are given as files: --embedding FILE, or embeddings=[file] in Python"
    warnings.warn(message, AnyI2VWarning, stacklevel=4)


def syntax(text: str) -> list[str]:
    """The pieces of a text that other programs would interpret, in their order."""
    patterns = [*_SYNTAX, *(_CAPITALS if any(letter.islower() for letter in text) else ())]
    matches = [match for pattern in patterns for match in re.finditer(pattern, text)]
    return [match[0] for match in sorted(matches, key=lambda match: match.start())]


def split(prompt: str, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The pieces of a prompt in their order: each plain text, or the name of an embedding, and the other one empty.

    A name stands for itself in any case, also behind "embedding:", if it is no part of a longer word. Of two names that
    begin at the same place the longer one counts.
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
    """A pattern for a name as a word of its own, wherever it begins or ends with a letter."""
    before, after = (
        edge if re.match(r"\w", letter) else "" for edge, letter in ((r"(?<!\w)", name[0]), (r"(?!\w)", name[-1]))
    )
    return f"{before}({re.escape(name)}){after}"


def used(prompts: Sequence[str], names: Iterable[str]) -> set[str]:
    """Which embeddings occur in any of the prompts."""
    names = list(names)
    return {name for prompt in prompts for _, name in split(prompt, names) if name}
