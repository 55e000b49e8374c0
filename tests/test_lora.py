"""LoRA files: whatever the layout, the weights become W + weight * alpha / rank * up @ down."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import anyi2v
from anyi2v.backbone.networks import Backbone, state
from anyi2v.checkpoints.checkpoint import load, loras_applied, save
from anyi2v.checkpoints.lora import Delta, bake, read_lora
from anyi2v.errors import AnyI2VWarning, CheckpointError, InputError
from tests import layouts
from tests.loras import LAYOUTS, Module, example, modules, part, shapes, weights, write
from tests.networks import tiny_backbone

EPS = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True, scope="module")
def _built() -> None:
    """Beforehand, because building draws random numbers, which hypothesis does not like in strategies."""
    weights()


def baked(*files: tuple[Path, float], alpha: Any = "file") -> dict[str, Tensor]:
    result = dict(weights())
    for path, weight in files:
        for key, deltas in read_lora(path, weight, keys=shapes(), alpha=alpha).items():
            result[key] = bake(key, result[key], deltas, torch.float32)
    return result


@pytest.mark.parametrize("name", LAYOUTS)
@settings(max_examples=12)
@given(data=st.data(), weight=st.floats(-2, 2, width=32), suffix=st.sampled_from([".safetensors", ".ckpt"]))
def test_every_layout_gives_the_formula(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject, weight: float, suffix: str
) -> None:
    layout = LAYOUTS[name]
    made = data.draw(modules(layout))
    ignored = data.draw(st.booleans())
    path = write(tmp_path_factory.mktemp("lora") / f"x{suffix}", layout, made)
    found = baked((path, weight), alpha="ignored" if ignored else "file")
    before = layout.modules(part(weights(), layout.network))
    after = layout.modules(part(found, layout.network))
    for key, tensor in after.items():
        module = made.get(key.removesuffix(".weight"))
        if module is None or key.endswith(".bias"):
            assert torch.equal(tensor, before[key]), key
            continue
        expected = before[key].double() + module.delta(weight, ignored).view_as(before[key])
        # each product is rounded, then each of the `rank` sums, then the sum with W: worst case, all one way
        size = Module(module.down.abs(), module.up.abs(), module.alpha).delta(abs(weight), ignored)
        bound = EPS * ((len(module.down) + 3) * size.view_as(expected) + before[key].abs()) + 1e-37
        assert ((tensor.double() - expected).abs() <= bound).all(), key
    other = "text" if layout.network == "unet" else "unet"
    assert all(torch.equal(found[key], x) for key, x in weights().items() if key.startswith((other, "vae")))


@settings(max_examples=15)
@given(data=st.data(), first=st.floats(-2, 2), second=st.floats(-2, 2))
def test_files_add_up_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, first: float, second: float
) -> None:
    layout, folder = LAYOUTS["kohya"], tmp_path_factory.mktemp("lora")
    files = [
        (write(folder / f"{i}.safetensors", layout, data.draw(modules(layout))), weight)
        for i, weight in enumerate((first, second))
    ]
    one, other = baked(*files), baked(*reversed(files))
    # updates are below 2 * 16 * 4 * 5 * 5 in size, and two sums are rounded
    assert all((one[key] - other[key]).abs().max() <= 4 * EPS * 3200 for key in one)


@settings(max_examples=15)
@given(data=st.data(), name=st.sampled_from(sorted(LAYOUTS)))
def test_weight_zero_changes_nothing(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str) -> None:
    made = data.draw(modules(LAYOUTS[name]))
    found = baked((write(tmp_path_factory.mktemp("lora") / "x.pt", LAYOUTS[name], made), 0.0))
    assert all(torch.equal(found[key], tensor) for key, tensor in weights().items())


def raw(backbone: Backbone) -> dict[str, bytes]:
    return {key: x.contiguous().flatten().view(torch.uint8).numpy().tobytes() for key, x in state(backbone).items()}


@torch.no_grad()
def test_loading_with_loras_is_reading_and_adding(tmp_path: Path) -> None:
    save(tiny_backbone(), tmp_path / "tiny.safetensors")
    files: list[tuple[str | Path, float]] = [(example(tmp_path), 0.5), (str(example(tmp_path, "kohya text")), 0.25)]
    expected = dict(weights())
    for path, weight in files:
        for key, deltas in read_lora(path, weight, keys=shapes()).items():
            for delta in deltas:
                expected[key] = delta.added_to(expected[key])
    assert any(not torch.equal(expected[key], weights()[key]) for key in expected)
    loaded = anyi2v.load(tmp_path / "tiny.safetensors", loras=files)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in state(loaded).items())
    assert not any(parameter.requires_grad for net in loaded.networks.values() for parameter in net.parameters())
    # in half precision only the sum is rounded
    half = load(tmp_path / "tiny.safetensors", loras=files, dtype=torch.bfloat16)
    assert all(torch.equal(x, expected[key].bfloat16()) for key, x in state(half).items() if key[:3] != "vae")
    backbone = load(tmp_path / "tiny.safetensors")
    with anyi2v.loras_applied(backbone, files):
        assert raw(backbone) == raw(loaded)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_after_the_block_every_bit_is_as_before(tmp_path: Path, dtype: torch.dtype) -> None:
    backbone = tiny_backbone().to("cpu", dtype)
    backbone.unet.conv_in.weight[0, 0, 0, 0] = -0.0
    before = raw(backbone)
    outer, inner = example(tmp_path), example(tmp_path, seed=1)
    with loras_applied(backbone, [(outer, 1.0)]):
        once = raw(backbone)
        assert once["unet.conv_in.weight"] != before["unet.conv_in.weight"]
        with loras_applied(backbone, [(inner, 0.3), (outer, -0.9)]):
            assert raw(backbone)["unet.conv_in.weight"] != once["unet.conv_in.weight"]
        assert raw(backbone) == once
    assert raw(backbone) == before


def test_an_exception_in_the_block_undoes_the_loras_too(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    with pytest.raises(KeyboardInterrupt), loras_applied(backbone, [(example(tmp_path), 1.0)]):
        raise KeyboardInterrupt
    assert raw(backbone) == raw(tiny_backbone())


def test_a_backbone_moved_in_the_block_ends_as_if_it_had_no_loras(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    with loras_applied(backbone, [(example(tmp_path), 1.0)]):
        backbone.to("cpu", torch.bfloat16)
    assert raw(backbone) == raw(tiny_backbone().to("cpu", torch.bfloat16))


def test_nothing_changes_if_one_of_the_files_is_refused(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    save_file({"x.lora_A.weight": torch.ones(1, 1)}, tmp_path / "bad.safetensors")
    files: list[tuple[str | Path, float]] = [(example(tmp_path), 1.0), (tmp_path / "bad.safetensors", 1.0)]
    with pytest.raises(CheckpointError), loras_applied(backbone, files):
        pass
    assert raw(backbone) == raw(tiny_backbone())


def test_a_sum_beyond_half_precision_is_refused_and_undone(tmp_path: Path) -> None:
    backbone = tiny_backbone().to("cpu", torch.float16)
    before = raw(backbone)
    message = r"unet\..* does not fit into torch\.float16.*lower"
    with pytest.raises(CheckpointError, match=message), loras_applied(backbone, [(example(tmp_path), 1e5)]):
        pass
    assert raw(backbone) == before


def test_updates_are_computed_in_float32_and_round_once() -> None:
    """In float16 itself 2048 + 1 is 2048, and 300 * 300 overflows."""
    parts = {side: torch.full((1, 1), 300.0).half() for side in ("down", "up")}
    delta = Delta(parts, scale=1 / 300, weight=1 / 300, rows=slice(0, 1))
    tensor = torch.full((1, 1), 2048.0, dtype=torch.float16)
    assert bake("x", tensor, [delta] * 3, torch.float16).item() == 2052  # 2051 lies between 2050 and 2052, even wins
    assert delta.added_to(tensor).dtype == torch.float16
    assert delta.added_to(torch.full((1, 1), 1e-9, dtype=torch.float64)).item() == pytest.approx(1 + 1e-9, abs=1e-15)
    assert tensor.item() == 2048


CONV, LINEAR = "unet.conv_in", "unet.time_embedding.linear_1"


def pair(module: str, rank: int = 2) -> dict[str, Tensor]:
    """A good update of a module in PEFT's layout."""
    out, *inner = shapes()[f"{module}.weight"]
    ones = (1,) * (len(inner) - 1)
    return {
        f"{module}.lora_A.weight": torch.ones(rank, *inner),
        f"{module}.lora_B.weight": torch.ones(out, rank, *ones),
    }


def stored(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file(tensors, folder / "x.safetensors", metadata)
    return folder / "x.safetensors"


def test_keys_that_match_nothing_are_counted_and_named(tmp_path: Path) -> None:
    strange = {f"unet.mid_block.nothing.{i}.lora_A.weight": torch.ones(1, 1) for i in range(7)}
    path = stored(tmp_path, strange | pair(CONV))
    with pytest.raises(CheckpointError, match=r"x\.safetensors: 7 of 9 keys match no weight") as caught:
        read_lora(path, keys=shapes())
    assert sum(key in str(caught.value) for key in strange) == 5
    with pytest.warns(UserWarning, match="7 of 9 keys") as warned:
        deltas = read_lora(path, keys=shapes(), strict=False)
    assert str(warned[0].message) == str(caught.value)
    assert deltas.keys() == {f"{CONV}.weight"}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("extra", ["scalar", "lora_E", "lora_B.bias", "rescale", "lokr_t1"])
def test_a_module_with_a_part_that_is_not_understood_is_never_applied(tmp_path: Path, extra: str, strict: bool) -> None:
    path = stored(tmp_path, pair(CONV) | {f"{CONV}.{extra}": torch.ones(2, 2)})
    with pytest.raises(CheckpointError, match=f"1 of 3 keys match no weight.*{extra}"):
        read_lora(path, keys=shapes(), strict=strict)
    with pytest.raises(CheckpointError, match="cannot be applied partially"):
        read_lora(path, keys=shapes(), strict=False)


def test_other_weights_are_refused_with_a_guess(tmp_path: Path) -> None:
    tensors = {key.removeprefix("unet."): tensor.contiguous() for key, tensor in weights().items() if "unet" in key}
    with pytest.raises(CheckpointError, match=r"looks like a diffusers UNet"):
        read_lora(stored(tmp_path, layouts.spatial(tensors)), keys=shapes())
    with pytest.raises(CheckpointError, match=r"0 of 0 keys"):
        read_lora(stored(tmp_path, {}), keys=shapes())


@pytest.mark.parametrize("module", [CONV, LINEAR])
@pytest.mark.parametrize("side", ["A", "B"])
def test_half_a_module_is_refused_by_key(tmp_path: Path, module: str, side: str) -> None:
    tensors = pair(module)
    del tensors[f"{module}.lora_{side}.weight"]
    (rest,) = tensors
    with pytest.raises(CheckpointError, match=rf"1 without its counterpart \(down or up\): {rest}$"):
        read_lora(stored(tmp_path, tensors | {f"{module}.alpha": torch.tensor(1.0)}), keys=shapes())


@pytest.mark.parametrize(
    ("module", "side", "shape"),
    [
        (CONV, "A", (2, 4)),
        (CONV, "A", (2, 4, 1, 1)),
        (CONV, "A", (2, 5, 3, 3)),
        (CONV, "B", (8, 3, 1, 1)),
        (CONV, "B", (8, 2, 3, 3)),
        (LINEAR, "A", (2, 9)),
        (LINEAR, "A", (0, 8)),
        (LINEAR, "A", ()),
        (LINEAR, "B", (16, 2)),
        (LINEAR, "B", (32,)),
        (LINEAR, "B", (32, 2, 1)),
    ],
)
def test_shapes_that_do_not_fit_are_named(tmp_path: Path, module: str, side: str, shape: tuple[int, ...]) -> None:
    key = f"{module}.lora_{side}.weight"
    with pytest.raises(CheckpointError) as caught:
        read_lora(stored(tmp_path, pair(module) | {key: torch.ones(shape)}), keys=shapes())
    for word in ("x.safetensors", key, f"{shape} instead of", f"{module}.weight {shapes()[f'{module}.weight']}"):
        assert word in str(caught.value)


def test_both_sides_must_have_one_rank(tmp_path: Path) -> None:
    tensors = pair(LINEAR) | {f"{LINEAR}.lora_A.weight": torch.ones(3, 8)}
    with pytest.raises(CheckpointError, match=rf"{LINEAR}\.lora_B\.weight \(32, 2\) instead of \(32, 3\)"):
        read_lora(stored(tmp_path, tensors), keys=shapes())


def test_an_alpha_alone_is_refused(tmp_path: Path) -> None:
    tensors = pair(CONV) | {f"{LINEAR}.alpha": torch.tensor(1.0)}
    with pytest.raises(CheckpointError, match=rf"counterpart \(down or up\): {LINEAR}\.alpha$"):
        read_lora(stored(tmp_path, tensors), keys=shapes())


def test_an_alpha_is_one_number(tmp_path: Path) -> None:
    for alpha in (torch.tensor(4), torch.tensor([4.0]), torch.tensor(4.0).half(), torch.tensor([[4.0]])):
        path = stored(tmp_path, pair(LINEAR) | {f"{LINEAR}.alpha": alpha})
        (delta,) = read_lora(path, 0.5, keys=shapes())[f"{LINEAR}.weight"]
        assert delta.factor == 0.5 * 4 / 2
    with pytest.raises(CheckpointError, match=r"alpha \(2,\) instead of \(\)"):
        read_lora(stored(tmp_path, pair(LINEAR) | {f"{LINEAR}.alpha": torch.ones(2)}), keys=shapes())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("end", ["lora_A.weight", "lora_B.weight", "alpha"])
def test_values_that_are_not_finite_are_refused_by_key(tmp_path: Path, value: float, end: str) -> None:
    tensors = pair(LINEAR) | {f"{LINEAR}.alpha": torch.tensor(1.0)}
    tensors[f"{LINEAR}.{end}"].view(-1)[-1] = value
    with pytest.raises(CheckpointError, match=f"1 not finite floating point numbers: {LINEAR}.{end}$"):
        read_lora(stored(tmp_path, tensors), keys=shapes())


def test_whole_numbers_are_no_updates(tmp_path: Path) -> None:
    tensors = {key: tensor.to(torch.int8) for key, tensor in pair(LINEAR).items()}
    with pytest.raises(CheckpointError, match="2 not finite floating point numbers"):
        read_lora(stored(tmp_path, tensors), keys=shapes())


def test_one_module_under_two_names_is_refused(tmp_path: Path) -> None:
    again = {key.replace("unet.", "base_model.model."): tensor for key, tensor in pair(CONV).items()}
    with pytest.raises(CheckpointError, match=rf"2 of the same module and side: .*{CONV}\.lora_A\.weight"):
        read_lora(stored(tmp_path, pair(CONV) | again), keys=shapes())


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_must_be_finite(tmp_path: Path, weight: float) -> None:
    with pytest.raises(InputError, match=f"the weight is {weight}"):
        read_lora(example(tmp_path), weight, keys=shapes())


@pytest.mark.parametrize("prefix", ["unet.", ""])
def test_the_alpha_in_the_metadata_of_diffusers_counts(tmp_path: Path, prefix: str) -> None:
    config = {f"{prefix}lora_alpha": 8, f"{prefix}alpha_pattern": {"linear_1": 3}, "text_encoder.lora_alpha": 99}
    tensors = pair(CONV) | pair(LINEAR) | pair("unet.conv_out") | {"unet.conv_out.alpha": torch.tensor(5.0)}
    path = stored(tmp_path, tensors, {"lora_adapter_metadata": json.dumps(config)})
    found = {key: delta.factor for key, (delta,) in read_lora(path, keys=shapes()).items()}
    assert found == {"unet.conv_in.weight": 4, f"{LINEAR}.weight": 1.5, "unet.conv_out.weight": 2.5}
    assert all(delta.factor == 1 for (delta,) in read_lora(path, keys=shapes(), alpha="ignored").values())


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        "{",
        '{"lora_alpha": "x"}',
        '{"alpha_pattern": {"(": 1}}',
    ],
)
def test_metadata_that_is_not_understood_is_refused(tmp_path: Path, text: str) -> None:
    path = stored(tmp_path, pair(CONV), {"lora_adapter_metadata": text})
    with pytest.raises(CheckpointError, match=r"x\.safetensors: .*cannot be read"):
        read_lora(path, keys=shapes())


def test_the_root_of_the_rank_divides_alpha_where_the_metadata_say_so(tmp_path: Path) -> None:
    config = {"unet.lora_alpha": 8, "unet.use_rslora": True, "text_encoder.use_rslora": False}
    path = stored(tmp_path, pair(LINEAR, rank=4), {"lora_adapter_metadata": json.dumps(config)})
    assert read_lora(path, keys=shapes())[f"{LINEAR}.weight"][0].factor == 8 / 2


def test_a_dora_without_its_magnitudes_is_refused(tmp_path: Path) -> None:
    path = stored(tmp_path, pair(LINEAR), {"lora_adapter_metadata": '{"unet.use_dora": true}'})
    for strict in (True, False):
        with pytest.raises(CheckpointError, match=r"linear_1 is declared as DoRA.*lacks its magnitudes"):
            read_lora(path, keys=shapes(), strict=strict)


def test_the_alpha_beside_an_adapter_of_peft_counts(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 16, "r": 2}))
    tensors = {key.replace("unet.", "base_model.model."): tensor for key, tensor in pair(LINEAR).items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    save_file(tensors, tmp_path / "other.safetensors")
    factors = {
        name: read_lora(tmp_path / f"{name}.safetensors", 0.5, keys=shapes())[f"{LINEAR}.weight"][0].factor
        for name in ("adapter_model", "other")
    }
    assert factors == {"adapter_model": 4, "other": 0.5}


def test_a_lora_beside_embeddings_is_applied_and_the_embeddings_are_named(tmp_path: Path) -> None:
    extra = {"bundle_emb.my.style.string_to_param.*": torch.ones(2, 8), "bundle_emb.other.clip_l": torch.ones(1, 8)}
    with pytest.warns(AnyI2VWarning, match=r"includes the embeddings 'my\.style', 'other'.*embeddings="):
        deltas = read_lora(stored(tmp_path, pair(LINEAR) | extra), keys=shapes())
    assert deltas.keys() == {f"{LINEAR}.weight"}


def test_modules_that_the_backbone_lacks_may_be_left_out_of_loading(tmp_path: Path) -> None:
    save(tiny_backbone(), tmp_path / "tiny.safetensors")
    path = stored(tmp_path, pair(LINEAR) | {"unet.nothing.lora_A.weight": torch.ones(1, 1)})
    with pytest.raises(CheckpointError, match="1 of 3 keys match no weight"):
        anyi2v.load(tmp_path / "tiny.safetensors", loras=[(path, 1.0)])
    with pytest.warns(AnyI2VWarning, match=r"1 of 3 keys match no weight.*unet\.nothing"):
        loaded = anyi2v.load(tmp_path / "tiny.safetensors", loras=[(path, 1.0)], lora_unmatched="warning")
    backbone = tiny_backbone()
    with pytest.raises(CheckpointError), anyi2v.loras_applied(backbone, [(path, 1.0)]):
        pass
    with (
        pytest.warns(AnyI2VWarning, match="1 of 3 keys"),
        anyi2v.loras_applied(backbone, [(path, 1.0)], lora_unmatched="warning"),
    ):
        assert raw(backbone) == raw(loaded)
    assert raw(backbone) == raw(tiny_backbone()) != raw(loaded)
