"""The cache of inversion features: equal to computing, safe against damage, bounded."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from anyi2v.inversion_cache import cache_key, cached, checksum, fingerprint

CPU = torch.device("cpu")


def features(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(1, 1, 4, 4, 3, generator=generator) for name in ("a.query", "b.hidden")}


class Counter:
    """Computes features and counts how often."""

    def __init__(self, seed: int = 0):
        self.seed, self.calls = seed, 0

    def __call__(self) -> dict[str, Tensor]:
        self.calls += 1
        return features(self.seed)


def fetch(folder: Path, compute: Counter, key: str = "k", **options: int) -> dict[str, Tensor]:
    return cached(folder, key, features(), compute, device=CPU, **options)


def test_second_fetch_reads_the_same_bits(tmp_path: Path) -> None:
    compute = Counter()
    first, second = fetch(tmp_path, compute), fetch(tmp_path, compute)
    assert compute.calls == 1
    assert checksum(first) == checksum(second) == checksum(features())


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "other", "foreign"])
def test_damaged_entries_are_made_anew(tmp_path: Path, damage: str) -> None:
    fetch(tmp_path, Counter())
    path = tmp_path / "k.safetensors"
    raw = bytearray(path.read_bytes())
    match damage:
        case "cut":
            path.write_bytes(raw[:-7])
        case "bit":
            raw[-1] ^= 1
            path.write_bytes(raw)
        case "empty":
            path.write_bytes(b"")
        case "other":  # a whole file, of other tensors
            cached(tmp_path, "other", ["x"], lambda: {"x": torch.ones(2)}, device=CPU)
            os.replace(tmp_path / "other.safetensors", path)
        case "foreign":
            path.write_bytes(b"not a cache entry at all")
    compute = Counter()
    again = fetch(tmp_path, compute)
    assert compute.calls == 1
    assert checksum(again) == checksum(features())
    fetch(tmp_path, compute)
    assert compute.calls == 1


def test_the_folder_is_bounded_and_keeps_what_was_used_last(tmp_path: Path) -> None:
    fetch(tmp_path, Counter(), "0")
    size = (tmp_path / "0.safetensors").stat().st_size
    for key in range(1, 4):
        fetch(tmp_path, Counter(), str(key))
        os.utime(tmp_path / f"{key}.safetensors", (key, key))
    os.utime(tmp_path / "0.safetensors", (9, 9))
    fetch(tmp_path, Counter(), "4", limit=3 * size)
    assert {path.stem for path in tmp_path.iterdir()} == {"0", "3", "4"}
    # the newest stays even where nothing fits
    fetch(tmp_path, Counter(), "5", limit=1)
    assert {path.stem for path in tmp_path.iterdir()} == {"5"}


@given(st.integers(0, 200), st.floats(-1000, 1000, width=16), st.sampled_from([torch.float32, torch.float16]))
def test_every_changed_weight_changes_the_fingerprint(index: int, value: float, dtype: torch.dtype) -> None:
    network = nn.Linear(16, 16, dtype=dtype)
    before, key = fingerprint(network), cache_key({"until": 201}, features(), network)
    weight = network.weight.data.view(-1)
    old = weight[index].item()
    weight[index] = value
    assert (fingerprint(network) == before) == (weight[index].item() == old)
    weight[index] = old
    assert fingerprint(network) == before
    assert cache_key({"until": 201}, features(), network) == key


def test_swapped_weights_and_other_inputs_have_other_keys() -> None:
    network = nn.Linear(4, 4)
    keys = {cache_key({"until": 201}, features(), network)}
    keys.add(cache_key({"until": 199}, features(), network))
    keys.add(cache_key({"until": 201}, features(1), network))
    keys.add(cache_key({"until": 201}, {k: v.half() for k, v in features().items()}, network))
    network.weight.data = network.weight.data.flip(0)
    keys.add(cache_key({"until": 201}, features(), network))
    assert len(keys) == 5
