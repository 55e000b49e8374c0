"""The CLIP text tower, which maps prompts to the token states that the UNet attends to.

The transformer and the byte-pair tokenizer are open_clip's. Importing open_clip takes seconds, so it is imported only
when a tower is built or byte-pair tokens are needed.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from anyi2v.backbone.config import TextConfig
from anyi2v.backbone.prompt_syntax import split
from anyi2v.errors import InputError, suggestion
from anyi2v.method.config import OperatorKind
from anyi2v.operators import using

LISTED = 60
"""Number of words up to which an error message lists the whole vocabulary."""


class TextTower(nn.Module):
    """The causal transformer of CLIP's text side, up to its last layer norm; parameter names as in open_clip.

    CLIP's pooled output and its projection are omitted; SD-1.x does not use them.
    """

    operators: OperatorKind = "fast"
    """As for the other networks; open_clip's transformer has only one implementation."""

    def __init__(self, config: TextConfig):
        super().__init__()
        from open_clip.transformer import QuickGELU, TextTransformer

        self.config = config
        tower = TextTransformer(
            context_length=config.length,
            vocab_size=config.vocab_size,
            width=config.width,
            heads=config.heads,
            layers=config.layers,
            mlp_ratio=config.mlp_ratio,
            proj_type="none",
            act_layer=QuickGELU if config.quick_gelu else nn.GELU,
        )
        self.token_embedding = tower.token_embedding
        self.positional_embedding = tower.positional_embedding
        self.transformer = tower.transformer
        self.ln_final = tower.ln_final

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters and of the output."""
        return self.positional_embedding.dtype

    def forward(self, ids: Int[Tensor, "b l"], extra: Float[Tensor, "n d"] | None = None) -> Float[Tensor, "b l d"]:
        """Return the state of every token after the last layer norm (transformers' `last_hidden_state`).

        With `config.penultimate` the last layer is skipped, but not the norm. `l` may be less than `config.length`.
        `extra` holds the embeddings of ids from `config.vocab_size` on.
        """
        length = ids.shape[1]
        x = self._embedded(ids, extra) + self.positional_embedding[:length]
        # not a buffer, which would stay empty in a tower built on the meta device
        causal = torch.full((length, length), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
        layers = self.config.layers - self.config.penultimate
        with using(self.operators):
            for block in self.transformer.resblocks[:layers]:
                x = block(x, attn_mask=causal)
            return self.ln_final(x)

    def _embedded(self, ids: Tensor, extra: Tensor | None) -> Tensor:
        known = self.config.vocab_size
        if extra is None:
            return self.token_embedding(ids)
        x = self.token_embedding(ids.clamp(max=known - 1))
        new = ids >= known
        x[new] = extra.to(x.device, x.dtype)[ids[new] - known]
        return x


def tokenize(
    config: TextConfig, prompts: Sequence[str], embeddings: Mapping[str, Tensor] | None = None
) -> Int[Tensor, "b l"]:
    """Convert prompts to token ids: begin, prompt, end, padded to `config.length`.

    The padding repeats the end token, as SD-1.x does; with `config.pad_zero` it is 0, as in open_clip. The states of
    all padded positions differ between the two. With `config.words` the tokens are whole words (lower case, split at
    white space), else CLIP's byte pairs. The name of one of the `embeddings` becomes as many tokens as it has vectors,
    whose ids follow the vocabulary in the order of the embeddings; see `anyi2v.checkpoints.embeddings`.

    Raises InputError for a word outside `config.words`, and for a prompt longer than `config.length` tokens.
    """
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise InputError(f"prompts must be a list of strings, not {prompts!r:.60}; pass [prompt] for a single one")
    rows = []
    for prompt in prompts:
        ids = _ids(config, prompt, embeddings)
        if len(ids) > config.length:
            _, cut = shortened(config, prompt, embeddings)
            raise InputError(
                f"prompt {_shorten(prompt)!r} has {len(ids)} tokens, including begin and end, but the text tower takes "
                f"at most {config.length}: {_shorten(cut)!r} does not fit; shorten it"
            )
        rows.append(ids + [0 if config.pad_zero else ids[-1]] * (config.length - len(ids)))
    return torch.tensor(rows, dtype=torch.long).view(len(rows), config.length)


def count_tokens(config: TextConfig, text: str, embeddings: Mapping[str, Tensor] | None = None) -> int:
    """Count the tokens of a text, without begin and end."""
    return len(_ids(config, text, embeddings)) - 2


def shortened(config: TextConfig, prompt: str, embeddings: Mapping[str, Tensor] | None = None) -> tuple[str, str]:
    """Split a prompt into the longest prefix of whole words that fits the text tower, and the rest."""
    words = prompt.split()
    if len(_ids(config, prompt, embeddings)) <= config.length:
        return prompt, ""
    kept = max(n for n in range(len(words)) if len(_ids(config, " ".join(words[:n]), embeddings)) <= config.length)
    return " ".join(words[:kept]), " ".join(words[kept:])


def _ids(config: TextConfig, prompt: str, embeddings: Mapping[str, Tensor] | None) -> list[int]:
    """Return the token ids of one prompt, including begin and end."""
    if any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise InputError(f"prompt {_shorten(prompt)!r} contains an unpaired surrogate; retype it")
    if config.words is None:
        encode, begin, end = _byte_pairs()
    else:
        encode, begin, end = functools.partial(_whole_words, config.words), 1, 2
    starts, count = {}, config.vocab_size
    for name, vectors in (embeddings or {}).items():
        starts[name] = range(count, count := count + len(vectors))
    pieces = split(prompt, embeddings or {})
    return [begin, *(token for text, name in pieces for token in (starts[name] if name else encode(text))), end]


def _whole_words(words: tuple[str, ...], prompt: str) -> list[int]:
    ids = []
    for word in prompt.lower().split():
        # the first three words are the reserved tokens <pad>, <bos>, <eos>
        if word not in words[3:]:
            raise InputError(
                f"prompt {_shorten(prompt)!r}: the word {word!r} is not among the {len(words) - 3} that this "
                f"backbone supports{suggestion(word, words[3:])}{_all_words(words[3:])}"
            )
        ids.append(words.index(word))
    return ids


def _all_words(words: tuple[str, ...]) -> str:
    """Return all words for an error message, in the vocabulary's order, which keeps kinds of words together."""
    return f" (all: {' '.join(words)})" if len(words) <= LISTED else "; `anyi2v inspect` prints all words of a backbone"


@functools.cache
def _byte_pairs() -> tuple[Callable[[str], list[int]], int, int]:
    """Return CLIP's encoder and its begin and end tokens; cached because reading the merges takes a second."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    return tokenizer.encode, tokenizer.sot_token_id, tokenizer.eot_token_id


def _shorten(prompt: str) -> str:
    return prompt if len(prompt) <= 60 else prompt[:57] + "..."
