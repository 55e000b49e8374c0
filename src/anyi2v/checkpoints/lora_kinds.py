"""Low-rank and related updates of a weight W, computed from the tensors of a module in a file.

* LoRA (Hu et al. 2021, arXiv:2106.09685): up @ down; with a `mid` of LoCon's, a Tucker decomposition.
* LoHa (FedPara: Hyeon-Woo et al. 2021, arXiv:2108.06098; LyCORIS: Yeh et al. 2023, arXiv:2309.14859):
  (w1_a @ w1_b) * (w2_a @ w2_b), elementwise.
* LoKr (LyCORIS): the Kronecker product of w1 and w2.
* DoRA (Liu et al. 2024, arXiv:2402.09353, Eq. 5) on top of any of these: m * (W + dW) / ||W + dW||.
* IA3 (Liu et al. 2022, arXiv:2205.05638): W with its rows or columns scaled.
"""

from collections.abc import Mapping
from itertools import product as pairs

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.checkpoints.lora_names import Side

Parts = Mapping[Side, Tensor]
"""The tensors of one module."""

_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_FACTORS_1 = (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
_FACTORS_2 = (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"), ("lokr_w2_a", "lokr_w2_b", "lokr_t2"))
FORMS: dict[str, tuple[tuple[Side, ...], ...]] = {
    "LoRA": (("down", "up"), ("down", "up", "mid")),
    "LoHa": (_LOHA, (*_LOHA, "hada_t1", "hada_t2")),
    "LoKr": tuple(first + second for first, second in pairs(_FACTORS_1, _FACTORS_2)),
    "IA3": (("weight", "on_input"), ("ia3_l",)),
}
"""Sets of sides that form a module, by kind, plus an optional alpha and, except for IA3, a DoRA magnitude."""

MAGNITUDES: tuple[Side, ...] = ("dora_scale", "magnitude")


def kind_of(sides: Mapping[Side, object]) -> str | None:
    """Return the kind of a module with these sides, for example "DoRA of LoHa"; None if unknown or incomplete."""
    dora = [side for side in MAGNITUDES if side in sides]
    inner = sides.keys() - {"alpha", *dora}
    kind = next((kind for kind, forms in FORMS.items() if any(inner == set(form) for form in forms)), None)
    if len(dora) > 1 or (dora and kind == "IA3"):
        return None
    if dora and kind:
        return "DoRA" if kind == "LoRA" else f"DoRA of {kind}"
    return kind


def rank_of(parts: Parts) -> int | None:
    """Return the rank that alpha is divided by; None for kinds without scaling (IA3, and LoKr of two full matrices)."""
    return next((len(parts[side]) for side in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b") if side in parts), None)


def scales_rows(parts: Parts) -> bool:
    """Return whether the module scales the layer's output including the bias, as PEFT's IA3 can."""
    return "ia3_l" in parts and parts["ia3_l"].ndim == 2 and parts["ia3_l"].shape[1] == 1


def additive(parts: Parts) -> bool:
    """Return whether the update is independent of the weight."""
    return not parts.keys() & {*MAGNITUDES, "weight", "ia3_l"}


def product(parts: Parts) -> Float[Tensor, "out inner"]:
    """Compute the unscaled update of LoRA, LoHa or LoKr as a matrix; kernel axes are merged with the input axis.

    Raises RuntimeError or ValueError if the shapes do not fit each other.
    """
    if "hada_w1_a" in parts:
        first, second = (_low_rank(parts, f"hada_w{i}_a", f"hada_w{i}_b", f"hada_t{i}") for i in (1, 2))
        if first.shape != second.shape:
            raise ValueError(f"factors of the shapes {tuple(first.shape)} and {tuple(second.shape)}")
        return first * second
    if "lokr_w1" in parts or "lokr_w1_a" in parts:
        first = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
        second = parts["lokr_w2"] if "lokr_w2" in parts else _low_rank(parts, "lokr_w2_a", "lokr_w2_b", "lokr_t2")
        # the kernel's axes belong to the second factor
        return torch.kron(first.flatten(1), second.flatten(1))
    if "mid" in parts:
        return _tucker(parts["mid"], parts["up"].flatten(1).T, parts["down"].flatten(1))
    return parts["up"].flatten(1) @ parts["down"].flatten(1)


def _low_rank(parts: Parts, a: Side, b: Side, core: Side) -> Tensor:
    """Return a @ b, or with a core the Tucker product, for which `a` is stored transposed."""
    if core in parts:
        return _tucker(parts[core], parts[a], parts[b])
    return parts[a].flatten(1) @ parts[b].flatten(1)


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Compute a kernel `out (in kh kw)` from its core `i j kh kw` and the factors `i out` and `j in`."""
    return torch.einsum("ijhw,io,jn->onhw", core, a, b).flatten(1)


def trained(parts: Parts, scale: float, weight: Float[Tensor, "out in *kernel"]) -> Float[Tensor, "out in *kernel"]:
    """Compute the trained weight, in the dtype of `weight`, which all parts must have.

    Raises RuntimeError or ValueError if the shapes do not fit.
    """
    if "weight" in parts:  # LyCORIS stores the difference from 1
        along = 1 if parts["on_input"].item() else 0
        return weight * (1 + _along(parts["weight"], weight, along))
    if "ia3_l" in parts:
        if parts["ia3_l"].ndim != 2:
            raise ValueError("PEFT's IA3 of a convolution does not say whether it scales the outputs or the inputs")
        return weight * _along(parts["ia3_l"], weight, 0 if scales_rows(parts) else 1)
    matrix = product(parts)
    if matrix.shape != weight.flatten(1).shape:
        raise ValueError(f"an update of the shape {tuple(matrix.shape)}")
    total = weight + scale * matrix.view_as(weight)
    for side in MAGNITUDES:
        if side in parts:
            along = _magnitude_axis(side, tuple(parts[side].shape), weight)
            others = [axis for axis in range(weight.ndim) if axis != along]
            norm = torch.linalg.vector_norm(total, dim=others, keepdim=True)
            total = total * (_along(parts[side], weight, along) / norm.clamp_min(torch.finfo(norm.dtype).tiny))
    return total


def _magnitude_axis(side: Side, shape: tuple[int, ...], weight: Tensor) -> int:
    """Return whether magnitudes belong to the outputs (0) or the inputs (1) of a layer.

    PEFT has one per output, `out` or `1 out 1 1`; LyCORIS one per output, `out 1 ...`, or per input, `1 in ...`.
    """
    inputs = side == "dora_scale" and len(shape) > 1 and shape[0] == 1 != len(weight)
    return 1 if inputs else 0


def _along(values: Tensor, weight: Tensor, axis: int) -> Tensor:
    """Reshape one value per entry of a weight's axis for multiplication with the weight."""
    if values.numel() != weight.shape[axis]:
        raise ValueError(f"{values.numel()} values for {weight.shape[axis]} {('outputs', 'inputs')[axis]}")
    return values.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])


def misfit(parts: Parts, shape: tuple[int, ...]) -> str:
    """Describe why a complete module cannot update a weight of this shape; empty if it can."""
    meta = {side: x if side == "on_input" else x.to("meta", torch.float32) for side, x in parts.items()}
    try:
        trained(meta, 1.0, torch.empty(shape, device="meta"))
    except (RuntimeError, ValueError, IndexError) as error:
        return str(error).splitlines()[0]
    return ""
