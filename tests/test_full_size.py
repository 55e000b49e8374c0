"""The small parts of the benchmark at full size; the whole of it takes minutes and is run by hand."""

from pathlib import Path

import pytest
import torch

from anyi2v.backbone.config import BackboneConfig
from benchmarks import full_size
from benchmarks.full_size import (
    FAMILIES,
    METHOD,
    Family,
    manifest,
    peak_memory,
    predicted,
    random_tensor,
    table_row,
)

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


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_files_are_those_of_the_manifests(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With each axis cut to 2: the names and the wrappers, as the converter's sources see them."""
    from weights_converters.sources import open_source

    small = {
        name: {k: tuple(min(s, 2) for s in shape) for k, shape in manifest(name).items()}
        for name, _ in family.files.values()
    }
    monkeypatch.setattr(full_size, "manifest", lambda name: small[name])
    sizes = full_size.make(tmp_path / "deep", family)
    for file, (name, _) in family.files.items():
        source = open_source(tmp_path / "deep" / file)
        assert dict(source.shapes) == small[name]
        assert sizes[file] == (tmp_path / "deep" / file).stat().st_size
    assert set(family.flags.values()) == set(family.files)


def test_the_memory_of_a_process_only_grows() -> None:
    before = peak_memory()
    block = torch.ones(64 * 2**20, dtype=torch.uint8)
    assert peak_memory() >= before
    assert 2**20 < before < 2**40 and block.all()


def test_predictions_follow_the_limits(tmp_path: Path) -> None:
    """Conversion within 1.5 GiB, with 0.6 GiB for the libraries."""
    imports = int(0.6 * GIB)
    for family in FAMILIES.values():
        convert = predicted("convert", tmp_path, family, imports)
        assert convert is not None and convert < 1.5 * GIB
        assert predicted("make", tmp_path, family, imports) is None


def test_the_row_says_how_far_off_the_prediction_was() -> None:
    row = {"seconds": 12.34, "peak": int(1.1 * GIB), "predicted_peak": GIB}
    assert table_row("convert", row) == "convert     12.3 s, peak 1.10 GiB, predicted 1.00 GiB (+10%)"
    assert table_row("make", row | {"predicted_peak": None}).endswith("peak 1.10 GiB")
    assert METHOD.steps == 2 and BackboneConfig(name="x").frames == full_size.FRAMES
