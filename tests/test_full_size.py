"""The small parts of the benchmark at full size; the whole of it takes minutes and is run by hand."""

import dataclasses
from pathlib import Path

import pytest
import torch

from anyi2v.backbone.config import BackboneConfig, UNetConfig
from anyi2v.backbone.foreign import WINDOW
from benchmarks import full_size
from benchmarks.full_size import METHOD, manifest, peak_memory, predicted, random_tensor, saved_bytes, table_row

GIB = 2**30


def test_contents_keep_the_size_of_signals() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = random_tensor("x.weight", (64, 32, 3, 3), generator)
    x = torch.nn.functional.conv2d(torch.randn(1, 32, 16, 16, generator=generator), weight.float(), padding=1)
    assert weight.dtype == torch.float16
    assert 0.8 < x.std().item() < 1.1
    assert torch.equal(random_tensor("norm.weight", (5,), generator), torch.ones(5).half())
    assert not random_tensor("conv.bias", (5,), generator).any()
    assert random_tensor("embeddings.position_ids", (1, 4), generator).tolist() == [[0, 1, 2, 3]]


def test_files_are_those_of_the_manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With each axis cut to 2: the names and the wrappers, as the converter's sources see them."""
    from weights_converters.sources import open_source

    small = {name: {k: tuple(min(s, 2) for s in shape) for k, shape in manifest(name).items()} for name in NAMES}
    monkeypatch.setattr(full_size, "manifest", lambda name: small[name])
    sizes = full_size.make(tmp_path / "deep")
    for name, path in zip(NAMES, full_size.sources(tmp_path / "deep"), strict=True):
        source = open_source(path)
        assert dict(source.shapes) == small[name]
        assert sizes[path.name] == path.stat().st_size


NAMES = ("sd15_ldm_full", "ad_motion_module_v3")


def test_the_memory_of_a_process_only_grows() -> None:
    before = peak_memory()
    block = torch.ones(64 * 2**20, dtype=torch.uint8)
    assert peak_memory() >= before
    assert 2**20 < before < 2**40 and block.all()


def test_what_a_pass_keeps_grows_with_the_frames() -> None:
    """Activations are proportional to the frames, apart from text and time."""
    config = UNetConfig(channels=(32, 64, 64), attention=(True, True, True), layers=1, context_dim=16)
    method = dataclasses.replace(METHOD, align=("up_blocks.1.attentions.1.query",))
    few, many = (saved_bytes(config, method, frames=frames, size=64) for frames in (2, 8))
    assert 3 < many / few <= 4.1


def test_predictions_follow_the_limits() -> None:
    """Conversion within 1.5 GiB, with 0.6 GiB for the libraries."""
    imports = int(0.6 * GIB)
    convert = predicted("convert", imports, WINDOW)
    assert convert is not None and convert < 1.5 * GIB
    assert predicted("make", imports, WINDOW) is None


def test_the_row_says_how_far_off_the_prediction_was() -> None:
    row = {"seconds": 12.34, "peak": int(1.1 * GIB), "predicted_peak": GIB}
    assert table_row("convert", row) == "convert     12.3 s, peak 1.10 GiB, predicted 1.00 GiB (+10%)"
    assert table_row("make", row | {"predicted_peak": None}).endswith("peak 1.10 GiB")
    assert METHOD.steps == 2 and BackboneConfig(name="x").frames == full_size.FRAMES
