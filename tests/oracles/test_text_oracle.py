"""Our text tower and token ids against transformers' CLIPTextModel and CLIPTokenizer, all without downloads."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyi2v.backbone.config import TextConfig
from anyi2v.backbone.text import TextTower, tokenize
from anyi2v.checkpoints.embeddings import read_embeddings
from weights_converters.diffusers_configs import text_config
from weights_converters.diffusers_layout import TEXT

from .compare import ROUNDING, adopt, difference, random_weights

transformers = pytest.importorskip("transformers", reason="transformers, the oracle, is in the extra 'dev'")


def random_config(seed: int) -> dict[str, Any]:
    pick = random.Random(seed)
    heads = pick.choice([1, 2, 4])
    width = heads * pick.choice([4, 8])
    return {
        "hidden_size": width,
        "intermediate_size": width * pick.choice([1, 2, 4]),
        "num_hidden_layers": pick.randint(1, 3),
        "num_attention_heads": heads,
        "max_position_embeddings": pick.randint(4, 12),
        "vocab_size": 50,
        "hidden_act": pick.choice(["quick_gelu", "gelu"]),
        "layer_norm_eps": 1e-5,
    }


@pytest.mark.parametrize("seed", range(6))
@torch.no_grad()
def test_token_states_agree(seed: int) -> None:
    config = random_config(seed)
    # where the prompt ends concerns the pooled output only, which we do not compute
    clip = transformers.CLIPTextConfig(**config, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    theirs: Any = random_weights(transformers.CLIPTextModel(clip), seed)
    ours = adopt(TextTower(text_config(config)), theirs, TEXT)
    length = config["max_position_embeddings"]
    ids = torch.randint(50, (3, length), generator=torch.Generator().manual_seed(seed))
    assert difference(ours(ids), theirs(ids).last_hidden_state) <= ROUNDING


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """CLIP's tokenizer of transformers, on the merges that open_clip ships."""
    import gzip

    from open_clip.tokenizer import SimpleTokenizer, default_bpe

    folder: Path = tmp_path_factory.mktemp("clip")
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {special.get(token, token): i for token, i in SimpleTokenizer().encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    return transformers.CLIPTokenizer.from_pretrained(folder)


# both lower-case, split and merge; open_clip also mends HTML escapes and ligatures, which prompts do not have
PROMPTS = st.text(st.characters(codec="ascii", exclude_categories=["Cc"], exclude_characters="&<|>"), max_size=60)


@settings(max_examples=150, deadline=None)
@given(prompt=PROMPTS)
def test_token_ids_and_padding_agree(tokenizer: Any, prompt: str) -> None:
    theirs = tokenizer(prompt, padding="max_length", max_length=77)["input_ids"]
    assert tokenize(TextConfig(), [prompt])[0].tolist() == theirs


@pytest.mark.parametrize("prompt", ["Zürich, 東京 & émigrés – naïve cafés", "a 4k photo!!! (best quality:1.2)"])
def test_token_ids_of_other_scripts_agree(tokenizer: Any, prompt: str) -> None:
    theirs = tokenizer(prompt, padding="max_length", max_length=77)["input_ids"]
    assert tokenize(TextConfig(), [prompt])[0].tolist() == theirs


@pytest.mark.parametrize("form", ["diffusers", "AUTOMATIC1111"])
@torch.no_grad()
def test_textual_inversion_agrees(tokenizer: Any, tmp_path: Path, form: str) -> None:
    """One token of three vectors and one of one, in prompts around other words."""
    loaders = pytest.importorskip("diffusers.loaders", reason="diffusers, the oracle, is in the extra 'dev'")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {**sizes, "max_position_embeddings": 77, "vocab_size": 49408, "hidden_act": "quick_gelu"}
    clip = transformers.CLIPTextConfig(**config, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407)
    theirs: Any = random_weights(transformers.CLIPTextModel(clip), 0)
    ours = adopt(TextTower(text_config({**config, "layer_norm_eps": 1e-5})), theirs, TEXT)
    generator = torch.Generator().manual_seed(0)
    vectors = {name: torch.randn(count, 16, generator=generator) for name, count in (("<toy>", 3), ("mystyle", 1))}
    files = []
    for name, x in vectors.items():
        # files of the web UI take the name inside for diffusers, and that of the file for us
        data = {name: x} if form == "diffusers" else {"string_to_param": {"*": x}, "name": name}
        torch.save(data, tmp_path / f"{name}.bin")
        files.append(tmp_path / f"{name}.bin")

    class Pipeline(loaders.TextualInversionLoaderMixin):
        def __init__(self) -> None:
            self.tokenizer, self.text_encoder = copy.deepcopy(tokenizer), theirs
            self.components, self.hf_device_map = {}, None

    pipeline = Pipeline()
    for file in files:
        pipeline.load_textual_inversion(torch.load(file))
    found = read_embeddings(files, ours.config)
    for prompt in ("a photo of <toy>", "a mystyle painting of <toy> and a cat", "a plain cat"):
        converted = pipeline.maybe_convert_prompt(prompt, pipeline.tokenizer)
        their_ids = pipeline.tokenizer(converted, padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
        expected = theirs(their_ids).last_hidden_state
        ids = tokenize(ours.config, [prompt], found)
        assert difference(ours(ids, torch.cat([*found.values()])), expected) <= ROUNDING
