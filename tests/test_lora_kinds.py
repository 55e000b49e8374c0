"""LoHa, LoKr, DoRA, IA3 and LoCon's middle layers: files of them give the weights of their published formulas.

The formulas are written here once more, in float64, in other words than the reader's: as layers that follow each other,
as blocks, as entries.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

import anyi2v
from anyi2v.backbone.networks import state
from anyi2v.checkpoints.checkpoint import save
from anyi2v.checkpoints.lora import bake, read_lora
from anyi2v.errors import AnyI2VWarning, CheckpointError
from tests.loras import shapes, weights
from tests.networks import tiny_backbone
from tests.test_lora import raw

Parts = dict[str, Tensor]
CONV = "unet.down_blocks.0.resnets.0.conv1"
SQUARE = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
WIDE = "unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2"
POINT = "unet.down_blocks.0.attentions.0.proj_in"
QUERY = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
MODULES = (CONV, SQUARE, WIDE, POINT, "unet.conv_in")


@pytest.fixture(autouse=True, scope="module")
def _built() -> None:
    weights()


def composed(*layers: Tensor) -> Tensor:
    """The kernel of convolutions that follow each other, read off what they make of single pixels."""
    size = max(layer.shape[-1] for layer in layers)
    inputs = layers[0].shape[1]
    x = torch.eye(inputs, dtype=torch.float64)[:, :, None, None]
    x = F.pad(x, [size - 1] * 4)
    for layer in layers:
        x = F.conv2d(x, layer.double())
    return x.transpose(0, 1).flip(-1, -2)


def as_layers(down: Tensor, up: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A convolution, or linear layer, and a pointwise one."""
    return composed(down.reshape(len(down), *shape[1:], *(1,) * (4 - len(shape))), up[:, :, None, None]).reshape(shape)


def lora(rank: int, shape: tuple[int, ...]) -> tuple[Parts, Tensor]:
    down, up = torch.randn(rank, *shape[1:]), torch.randn(shape[0], rank, *(1,) * (len(shape) - 2))
    return {"lora_down.weight": down, "lora_up.weight": up}, as_layers(down, up.flatten(1), shape)


def locon(rank: int, shape: tuple[int, ...]) -> tuple[Parts, Tensor]:
    down, mid, up = (
        torch.randn(rank, shape[1], 1, 1),
        torch.randn(rank, rank, *shape[2:]),
        torch.randn(shape[0], rank, 1, 1),
    )
    return {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up}, composed(down, mid, up)


def loha(rank: int, shape: tuple[int, ...]) -> tuple[Parts, Tensor]:
    inner = math.prod(shape[1:])
    parts = {f"hada_w{i}_a": torch.randn(shape[0], rank) for i in (1, 2)}
    parts |= {f"hada_w{i}_b": torch.randn(rank, inner) for i in (1, 2)}
    first, second = (as_layers(parts[f"hada_w{i}_b"], parts[f"hada_w{i}_a"], (shape[0], inner)) for i in (1, 2))
    return parts, (first * second).reshape(shape)


def loha_tucker(rank: int, shape: tuple[int, ...]) -> tuple[Parts, Tensor]:
    parts: Parts = {}
    result = torch.ones(shape, dtype=torch.float64)
    for i in (1, 2):
        a, b, core = torch.randn(rank, shape[0]), torch.randn(rank, shape[1]), torch.randn(rank, rank, *shape[2:])
        parts |= {f"hada_w{i}_a": a, f"hada_w{i}_b": b, f"hada_t{i}": core}
        result *= composed(b[:, :, None, None], core, a.T.contiguous()[:, :, None, None])
    return parts, result


def blocks(first: Tensor, second: Tensor) -> Tensor:
    """Each entry of the first factor times the second factor, as a block."""
    rows = [torch.cat([entry.double() * second.double() for entry in row], dim=1) for row in first]
    return torch.cat(rows, dim=0)


def lokr(form: str) -> Callable[[int, tuple[int, ...]], tuple[Parts, Tensor]]:
    """`form` says which factors are low-rank: "", "1", "2", "12", or "t" for a Tucker core in the second one."""

    def make(rank: int, shape: tuple[int, ...]) -> tuple[Parts, Tensor]:
        out, inputs, kernel = shape[0], shape[1], shape[2:]
        first, second = torch.randn(2, 2), torch.randn(out // 2, inputs // 2, *kernel)
        parts: Parts = {"lokr_w1": first, "lokr_w2": second}
        if "1" in form:
            del parts["lokr_w1"]
            parts |= {"lokr_w1_a": torch.randn(2, rank), "lokr_w1_b": torch.randn(rank, 2)}
            first = parts["lokr_w1_a"].double() @ parts["lokr_w1_b"].double()
        if "2" in form:
            del parts["lokr_w2"]
            inner = math.prod(second.shape[1:])
            parts |= {"lokr_w2_a": torch.randn(out // 2, rank), "lokr_w2_b": torch.randn(rank, inner)}
            second = (parts["lokr_w2_a"].double() @ parts["lokr_w2_b"].double()).reshape(second.shape)
        if "t" in form:
            del parts["lokr_w2"]
            a, b, core = torch.randn(rank, out // 2), torch.randn(rank, inputs // 2), torch.randn(rank, rank, *kernel)
            parts |= {"lokr_w2_a": a, "lokr_w2_b": b, "lokr_t2": core}
            second = composed(b[:, :, None, None], core, a.T.contiguous()[:, :, None, None])
        return parts, blocks(first, second)

    return make


KINDS: dict[str, Callable[[int, tuple[int, ...]], tuple[Parts, Tensor]]] = {
    "LoRA": lora,
    "LoCon": locon,
    "LoHa": loha,
    "LoHa, Tucker": loha_tucker,
    **{f"LoKr {form}": lokr(form) for form in ("", "1", "2", "12", "t")},
}
NEEDS_KERNEL = ("LoCon", "LoHa, Tucker", "LoKr t")


def decomposed(total: Tensor, magnitude: Tensor, axis: int) -> Tensor:
    """Each output's (0) or input's (1) weights with this length."""
    result = total.clone()
    for i, length in enumerate(magnitude.double().flatten()):
        entries = result.select(axis, i)
        entries *= length / math.sqrt((entries**2).sum())
    return result


def magnitudes(style: str, shape: tuple[int, ...]) -> tuple[Parts, int]:
    """DoRA's tensor as the libraries store it, and the axis that it belongs to."""
    ones = (1,) * (len(shape) - 2)
    if style == "LyCORIS inputs":
        return {"dora_scale": torch.rand(1, shape[1], *ones) + 0.5}, 1
    if style == "LyCORIS outputs":
        return {"dora_scale": torch.rand(shape[0], 1, *ones) + 0.5}, 0
    stored = torch.rand(1, shape[0], 1, 1) if len(shape) == 4 else torch.rand(shape[0])
    return {"lora_magnitude_vector": stored + 0.5}, 0


def stored(folder: Path, module: str, parts: Parts) -> Path:
    name = "lora_unet_" + module.removeprefix("unet.").replace(".", "_")
    tensors = {f"{name}.{key}": tensor.contiguous() for key, tensor in parts.items()}
    save_file(tensors, folder / "x.safetensors")
    return folder / "x.safetensors"


def changed(path: Path, weight: float, module: str, **options: Any) -> Tensor:
    """The weight of a module with a file's updates, which must be all that there are."""
    deltas = read_lora(path, weight, keys=shapes(), **options)
    assert deltas.keys() == {f"{module}.weight"}
    return bake(module, weights()[f"{module}.weight"], deltas[f"{module}.weight"], torch.float32).double()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_file_gives_the_formula(tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject) -> None:
    module = data.draw(st.sampled_from([CONV, "unet.conv_in"] if kind in NEEDS_KERNEL else MODULES))
    base, rank = weights()[f"{module}.weight"].double(), data.draw(st.integers(1, 3))
    weight, alpha = data.draw(st.floats(-1.5, 1.5, width=32)), data.draw(st.none() | st.floats(0.25, 4, width=32))
    style = data.draw(st.sampled_from([None, "LyCORIS inputs", "LyCORIS outputs", "PEFT"]))
    ignored = data.draw(st.booleans())
    with torch.random.fork_rng():
        torch.manual_seed(data.draw(st.integers(0, 2**31)))
        parts, product = KINDS[kind](rank, tuple(base.shape))
        extra, axis = magnitudes(style, tuple(base.shape)) if style else ({}, 0)
    if alpha is not None:
        parts["alpha"] = torch.tensor(alpha)
    # two full matrices have no rank, and LyCORIS scales them by 1
    scale = 1.0 if alpha is None or ignored or kind == "LoKr " else alpha / rank
    trained = base + scale * product
    if style:
        trained = decomposed(trained, next(iter(extra.values())), axis)
    expected = base + weight * (trained - base)
    path = stored(tmp_path_factory.mktemp("lora"), module, parts | extra)
    found = changed(path, weight, module, alpha="ignored" if ignored else "file")
    # some tens of float32 roundings of sums whose terms are at most 50 times as large as the result
    limit = 1e-5 * (1 + trained.abs().max() + (scale * product).abs().max())
    assert (found - expected).abs().max() <= limit
    if style is None or weight == 0:
        assert weight or torch.equal(found, base)


@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize("module", MODULES)
def test_ia3_of_lycoris_scales_outputs_or_inputs(tmp_path: Path, module: str, on_input: bool) -> None:
    base = weights()[f"{module}.weight"].double()
    values = torch.randn(base.shape[int(on_input)])
    stored_as = values[None, :, None, None] if base.ndim == 4 else values
    path = stored(tmp_path, module, {"weight": stored_as, "on_input": torch.tensor(int(on_input))})
    expected = base.clone()
    for i, value in enumerate(values.double()):
        expected.select(int(on_input), i).mul_(1 + 0.5 * value)
    assert (changed(path, 0.5, module) - expected).abs().max() <= 1e-6
    assert torch.equal(changed(path, 0.0, module), base)


def test_ia3_of_peft_multiplies(tmp_path: Path) -> None:
    base, values = weights()[f"{WIDE}.weight"].double(), torch.randn(1, shapes()[f"{WIDE}.weight"][1])
    path = tmp_path / "x.safetensors"
    save_file({f"base_model.model.{WIDE.removeprefix('unet.')}.ia3_l": values}, path)
    assert (changed(path, 1.0, WIDE) - base * values.double()).abs().max() <= 1e-6
    rows = torch.randn(shapes()[f"{SQUARE}.weight"][0], 1)
    save_file({f"{SQUARE}.ia3_l": rows}, path)
    assert (changed(path, 1.0, SQUARE) - weights()[f"{SQUARE}.weight"].double() * rows.double()).abs().max() <= 1e-6
    # of a layer with a bias, the bias would have to be scaled as well
    save_file({f"{QUERY}.ia3_l": torch.ones(8, 1)}, path)
    with pytest.raises(CheckpointError, match=r"scales text.*in_proj_bias as well, which is not supported"):
        read_lora(path, keys=shapes())
    save_file({f"{CONV}.ia3_l": torch.ones(1, 8, 1, 1)}, path)
    with pytest.raises(CheckpointError, match="IA3 of a convolution"):
        read_lora(path, keys=shapes())


def test_dora_of_a_third_of_a_weight_leaves_the_others(tmp_path: Path) -> None:
    """The three projections of a layer of the text tower are one weight of ours; each has its own magnitudes."""
    key = "text.transformer.resblocks.0.attn.in_proj_weight"
    base = weights()[key].double()
    down, up, magnitude = torch.randn(2, 8), torch.randn(8, 2), torch.rand(8) + 0.5
    sides = {"lora_A.weight": down, "lora_B.weight": up, "lora_magnitude_vector": magnitude}
    name = QUERY.replace("q_proj", "k_proj")
    save_file({f"{name}.{side}": tensor for side, tensor in sides.items()}, tmp_path / "x.safetensors")
    (delta,) = read_lora(tmp_path / "x.safetensors", keys=shapes())[key]
    found = delta.added_to(weights()[key]).double()
    expected = decomposed(base[8:16] + up.double() @ down.double(), magnitude, 0)
    assert (found[8:16] - expected).abs().max() <= 1e-5
    assert torch.equal(found[:8], base[:8]) and torch.equal(found[16:], base[16:])


def example(folder: Path, name: str, seed: int) -> Path:
    """A file with a module of several kinds each."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tensors: Parts = {}
        for module, kind, style in (
            (CONV, "LoCon", "LyCORIS inputs"),
            (SQUARE, "LoHa", None),
            (WIDE, "LoKr 2", "LyCORIS outputs"),
            (POINT, "LoRA", "PEFT"),
        ):
            shape = shapes()[f"{module}.weight"]
            parts = KINDS[kind](2, shape)[0] | (magnitudes(style, shape)[0] if style else {})
            stem = "lora_unet_" + module.removeprefix("unet.").replace(".", "_")
            tensors |= {f"{stem}.{side}": tensor.contiguous() for side, tensor in parts.items()}
    save_file(tensors, folder / name)
    return folder / name


def test_the_order_of_files_does_not_matter_and_every_bit_comes_back(tmp_path: Path) -> None:
    """Updates that depend on the weight are of the original one, whatever else is added."""
    backbone = tiny_backbone()
    one, other = (example(tmp_path, f"{i}.safetensors", seed=i) for i in (1, 2))
    alone = []
    for path in (one, other):
        with anyi2v.loras_applied(backbone, [(path, 0.5)]):
            alone.append({key: x.double() for key, x in state(backbone).items()})
    before = {key: x.double() for key, x in weights().items()}
    results = []
    for files in ([(one, 0.5), (other, 0.5)], [(other, 0.5), (one, 0.5)]):
        with anyi2v.loras_applied(backbone, files):
            results.append({key: x.double() for key, x in state(backbone).items()})
    assert raw(backbone) == raw(tiny_backbone())
    assert any((results[0][key] - before[key]).abs().max() > 0.1 for key in before)
    for key, x in before.items():
        expected = alone[0][key] + alone[1][key] - x
        assert all((result[key] - expected).abs().max() <= 1e-5 for result in results), key


def test_loading_with_them_is_applying_them(tmp_path: Path) -> None:
    save(tiny_backbone(), tmp_path / "tiny.safetensors")
    path, backbone = example(tmp_path, "x.safetensors", seed=3), tiny_backbone()
    loaded = anyi2v.load(tmp_path / "tiny.safetensors", loras=[(path, 0.7)])
    with anyi2v.loras_applied(backbone, [(path, 0.7)]):
        assert raw(backbone) == raw(loaded)


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_dora_is_never_applied_as_plain_lora(tmp_path: Path, weight: float) -> None:
    """Neither strict nor lenient reading may leave the magnitudes out."""
    shape = shapes()[f"{SQUARE}.weight"]
    parts, _ = lora(2, shape)
    plain = changed(stored(tmp_path, SQUARE, parts), weight, SQUARE)
    extra, _ = magnitudes("LyCORIS outputs", shape)
    path = stored(tmp_path, SQUARE, parts | extra)
    strict, lenient = (changed(path, weight, SQUARE, strict=strict) for strict in (True, False))
    assert torch.equal(strict, lenient)
    assert (strict - plain).abs().max() > 0.1


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"hada_w1_a": (8, 2), "hada_w1_b": (2, 8), "hada_w2_a": (8, 2)}, "1 that do not form a complete module"),
        ({"lokr_w1": (2, 2)}, "1 that do not form a complete module"),
        ({"lokr_w1": (2, 2), "lokr_w1_a": (2, 2), "lokr_w2": (4, 4)}, "1 that do not form a complete module"),
        (
            {"lora_up.weight": (8, 2), "lora_down.weight": (2, 8), "lokr_w2": (4, 4)},
            "1 that do not form a complete module",
        ),
        ({"dora_scale": (8, 1)}, "1 without its counterpart"),
        ({"lokr_w1": (2, 2), "lokr_w2": (4, 3)}, r"1 of the wrong shape.*lokr_w1 \(2, 2\).*lokr_w2 \(4, 3\)"),
        ({"lokr_w1": (2, 4), "lokr_w2": (4, 4)}, "1 of the wrong shape"),
        (
            {"hada_w1_a": (8, 2), "hada_w1_b": (2, 8), "hada_w2_a": (8, 2), "hada_w2_b": (2, 1)},
            "1 of the wrong shape",
        ),
        ({"lora_up.weight": (8, 2), "lora_down.weight": (2, 8), "dora_scale": (7, 1)}, "7 values for 8 outputs"),
        ({"lora_up.weight": (8, 2), "lora_down.weight": (2, 8), "dora_scale": (1, 7)}, "7 values for 8 inputs"),
        (
            {"lora_up.weight": (8, 2), "lora_down.weight": (2, 8), "lora_mid.weight": (2, 2, 3, 3)},
            "1 of the wrong shape",
        ),
        ({"weight": (7,), "on_input": ()}, "7 values for 8 inputs"),
        ({"weight": (8,), "on_input": (), "dora_scale": (8, 1)}, "1 that do not form a complete module"),
    ],
)
def test_modules_that_are_not_whole_or_do_not_fit_are_named(
    tmp_path: Path, parts: dict[str, tuple[int, ...]], message: str
) -> None:
    path = stored(tmp_path, SQUARE, {side: torch.ones(shape) for side, shape in parts.items()})
    for strict in (True, False):
        with pytest.raises(CheckpointError, match=f"not usable as a LoRA.*{message}"):
            read_lora(path, keys=shapes(), strict=strict)


@pytest.mark.parametrize("side", ["hada_w2_b", "dora_scale"])
def test_values_that_are_not_finite_are_named(tmp_path: Path, side: str) -> None:
    parts, _ = loha(2, shapes()[f"{SQUARE}.weight"])
    parts["dora_scale"] = torch.ones(8, 1)
    parts[side][0] = math.nan
    with pytest.raises(CheckpointError, match=f"1 not finite floating point numbers: .*{side}"):
        read_lora(stored(tmp_path, SQUARE, parts), keys=shapes())


def test_kinds_that_are_not_computed_are_named(tmp_path: Path) -> None:
    stem = "lora_unet_conv_in"
    for tensors, kind in (
        ({f"{stem}.oft_blocks": torch.ones(2, 2, 2), f"{stem}.alpha": torch.tensor(1.0)}, r"OFT or BOFT \(1 keys\)"),
        ({f"{stem}.{side}.weight": torch.ones(2, 2) for side in ("a1", "a2", "b1", "b2")}, r"GLoRA \(4 keys\)"),
        ({f"{stem}.diff": torch.ones(8, 4, 3, 3), f"{stem}.diff_b": torch.ones(8)}, r"full differences \(2 keys\)"),
    ):
        save_file(tensors, tmp_path / "x.safetensors")
        for strict in (True, False):
            with pytest.raises(CheckpointError, match=f"not supported: {kind}"):
                read_lora(tmp_path / "x.safetensors", keys=shapes(), strict=strict)


def test_alpha_and_rank_of_peft_scale_its_lokr(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LOKR", "alpha": 4, "r": 8}))
    parts, product = lokr("")(1, shapes()[f"{SQUARE}.weight"])
    path = tmp_path / "adapter_model.safetensors"
    save_file({f"base_model.model.{SQUARE.removeprefix('unet.')}.{side}": x for side, x in parts.items()}, path)
    expected = weights()[f"{SQUARE}.weight"].double() + 0.5 * product
    assert (changed(path, 1.0, SQUARE) - expected).abs().max() <= 1e-5


def test_a_lora_for_another_base_that_fits_is_warned_of(tmp_path: Path) -> None:
    keys = {"unet.a.attn2.to_k.weight": (4, 768), "unet.a.attn1.to_q.weight": (4, 4)}
    tensors = {"unet.a.attn1.to_q.lora_A.weight": torch.ones(1, 4), "unet.a.attn1.to_q.lora_B.weight": torch.ones(4, 1)}
    save_file(tensors, tmp_path / "x.safetensors", {"ss_base_model_version": "sdxl_base_v1-0"})
    with pytest.warns(AnyI2VWarning, match="made for SDXL"):
        assert read_lora(tmp_path / "x.safetensors", keys=keys)
