"""The cache of inversion features: equal to computing, safe against damage, bounded."""

import copy
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from anyi2v.backbone.networks import Backbone, build
from anyi2v.backbone.unet import record
from anyi2v.denoiser import Denoiser
from anyi2v.diffusion import add_noise, level
from anyi2v.errors import AnyI2VWarning
from anyi2v.job import Job
from anyi2v.method.config import MethodConfig
from anyi2v.method.features import condition_features
from anyi2v.method.features_cache import cache_key, cached, checksum, fingerprint
from anyi2v.method.noise import stream
from anyi2v.taps import Pass, no_tap
from anyi2v.tracks import Tracks

from .networks import SHORT, tiny_backbone

CPU = torch.device("cpu")
BACKBONE = tiny_backbone()


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


def entry(folder: Path, key: str) -> Path:
    return folder / "anyi2v-inversions" / f"{key}.features.safetensors"


def kept(folder: Path) -> set[str]:
    return {path.name.split(".")[0] for path in (folder / "anyi2v-inversions").iterdir()}


def test_second_fetch_reads_the_same_bits(tmp_path: Path) -> None:
    compute = Counter()
    first, second = fetch(tmp_path, compute), fetch(tmp_path, compute)
    assert compute.calls == 1
    assert checksum(first) == checksum(second) == checksum(features())


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "other", "foreign"])
def test_damaged_entries_are_made_anew(tmp_path: Path, damage: str) -> None:
    fetch(tmp_path, Counter())
    path = entry(tmp_path, "k")
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
            os.replace(entry(tmp_path, "other"), path)
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
    size = entry(tmp_path, "0").stat().st_size
    for key in range(1, 4):
        fetch(tmp_path, Counter(), str(key))
        os.utime(entry(tmp_path, str(key)), (key, key))
    os.utime(entry(tmp_path, "0"), (9, 9))
    fetch(tmp_path, Counter(), "4", limit=3 * size)
    assert kept(tmp_path) == {"0", "3", "4"}
    # the newest stays even where nothing fits
    fetch(tmp_path, Counter(), "5", limit=1)
    assert kept(tmp_path) == {"5"}


def test_files_of_others_are_never_removed(tmp_path: Path) -> None:
    """A user's checkpoint lies in the folder, or even among the entries, and is the oldest and largest by far."""
    inside = tmp_path / "anyi2v-inversions"
    inside.mkdir()
    others = [tmp_path / "model.safetensors", tmp_path / "x.features.safetensors", inside / "model.safetensors"]
    for path in others:
        path.write_bytes(bytes(10**6))
        os.utime(path, (1, 1))
    for key in "abc":
        fetch(tmp_path, Counter(), key, limit=1)
    assert all(path.stat().st_size == 10**6 for path in others)
    assert kept(tmp_path) == {"c", "model"}


def test_what_killed_processes_left_is_removed_after_a_day(tmp_path: Path) -> None:
    inside = tmp_path / "anyi2v-inversions"
    inside.mkdir()
    for name, age in ((".anyi2v-old.safetensors", 90_000), (".anyi2v-new.safetensors", 60)):
        (inside / name).touch()
        os.utime(inside / name, (time.time() - age, time.time() - age))
    fetch(tmp_path, Counter())
    assert {path.name for path in inside.iterdir()} == {".anyi2v-new.safetensors", "k.features.safetensors"}


def test_an_entry_that_cannot_be_stored_costs_no_job(tmp_path: Path) -> None:
    (tmp_path / "anyi2v-inversions").touch()  # a file where the folder should be
    with pytest.warns(AnyI2VWarning, match=r"the inverted image is not cached in .*anyi2v-inversions: cannot write"):
        found = fetch(tmp_path, Counter())
    assert checksum(found) == checksum(features())


def inverted_key(monkeypatch: pytest.MonkeyPatch, folder: Path, **changes: Any) -> str:
    """The key of the entry that a job looks up; `changes` are of its backbone, image, text, config or fps."""
    seen: list[str] = []

    def looked_up(folder: Path, key: str, *_: Any, **__: Any) -> dict[str, Tensor]:
        seen.append(key)
        return {}

    monkeypatch.setattr("anyi2v.method.features.cached", looked_up)
    generator = torch.Generator().manual_seed(0)
    values: dict[str, Any] = {
        "backbone": BACKBONE,
        "image": torch.rand(1, 3, 16, 16, generator=generator),
        "text": torch.randn(1, 6, 8, generator=generator),
        "config": SHORT,
        "fps": 8,
        "low_memory": False,
    } | changes
    text, images = values.pop("text"), values.pop("image")
    tracks = Tracks(16, 16, ())
    job = Job(**values, image=images[0], prompt="", negative_prompt="", tracks=tracks, seed=0, frames=4, cache=folder)
    condition_features(job, Denoiser(job.backbone.unet, text, low_memory=job.low_memory), images)
    return seen[0]


def other_heads() -> Backbone:
    """The same weights in another architecture: no tensor has another shape."""
    config = replace(BACKBONE.config, unet=replace(BACKBONE.config.unet, heads=4))
    other = build(config)
    for name, network in other.networks.items():
        network.load_state_dict(BACKBONE.networks[name].state_dict())
    return other


def other_schedule() -> Backbone:
    changed = copy.copy(BACKBONE)
    changed.config = replace(BACKBONE.config, schedule=replace(BACKBONE.config.schedule, final_alpha_one=False))
    return changed


def by_formulas() -> Backbone:
    changed = tiny_backbone()
    changed.operators = "reference"
    return changed


CHANGES: dict[str, Callable[[], dict[str, Any]]] = {
    "stride": lambda: {"config": replace(SHORT, inversion_stride=2)},
    "until": lambda: {"config": replace(SHORT, inversion_timestep=4)},
    "fps": lambda: {"fps": 9},
    "names": lambda: {"config": replace(SHORT, inject_query=SHORT.inject_query[:1])},
    "schedule": lambda: {"backbone": other_schedule()},
    "heads": lambda: {"backbone": other_heads()},
    "weights": lambda: {"backbone": tiny_backbone(seed=1)},
    "low memory": lambda: {"low_memory": True},
    "dtype": lambda: {"backbone": tiny_backbone().to("cpu", torch.float64)},
    "operators": lambda: {"backbone": by_formulas()},
    "image": lambda: {"image": torch.zeros(1, 3, 16, 16)},
    "text": lambda: {"text": torch.zeros(1, 6, 8)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_everything_that_decides_the_features_is_in_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    before = inverted_key(monkeypatch, tmp_path)
    assert inverted_key(monkeypatch, tmp_path, **CHANGES[change]()) != before
    assert inverted_key(monkeypatch, tmp_path) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("anyi2v.method.features_cache.code_digest", lambda: "other"),
        ("anyi2v.method.features.processor", lambda device: "other"),
        ("torch.get_num_threads", lambda: 7),
        ("torch.__version__", "1.0"),
    ],
)
def test_the_code_and_what_computes_are_in_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    before = inverted_key(monkeypatch, tmp_path)
    monkeypatch.setattr(name, value)
    assert inverted_key(monkeypatch, tmp_path) != before


def test_what_does_not_decide_the_features_is_not_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(SHORT, lr=0.5, steps=3, inject_hidden=SHORT.inject_hidden[::-1], mask="none")
    assert inverted_key(monkeypatch, tmp_path, config=config) == inverted_key(monkeypatch, tmp_path)


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


def features_of(config: MethodConfig, **options: Any) -> tuple[Job, dict[str, Tensor]]:
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    values: dict[str, Any] = {"prompt": "", "negative_prompt": "", "tracks": Tracks(16, 16, ()), "seed": 3, "fps": 8}
    job = Job(BACKBONE, image, config=config, frames=4, **values, **options)
    text = BACKBONE.encode_text(["a red ball"])
    return job, condition_features(job, Denoiser(BACKBONE.unet, text, taps=job.taps), image[None])


def test_added_noise_has_the_level_of_the_timestep() -> None:
    config = replace(SHORT, inversion="noise", inversion_timestep=201, inversion_stride=50)
    job, found = features_of(config)
    with torch.no_grad():
        latent = BACKBONE.vae.encode(2 * job.image[None] - 1)[:, None]
        noise = torch.randn(latent.shape, generator=stream(3, "inversion"))
        z = add_noise(latent, noise, level(BACKBONE.config.schedule, 201))
        wanted = record(BACKBONE.unet, found, z, 201, BACKBONE.encode_text(["a red ball"]), temporal=False)
    for name, x in found.items():
        torch.testing.assert_close(x, wanted[name])


def test_taps_see_the_inversion_although_there_is_a_cache(tmp_path: Path) -> None:
    features_of(SHORT, cache=tmp_path)
    seen: list[Pass] = []
    features_of(SHORT, cache=tmp_path, taps=lambda at: seen.append(at) or no_tap)
    assert [at.timestep for at in seen] == list(range(1, SHORT.inversion_timestep + 1))
