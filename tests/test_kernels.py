"""Kernels for GPUs equal PyTorch's operators in float64, both ways; on a CPU Triton's interpreter runs them."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
triton = pytest.importorskip("triton", reason="Triton comes with PyTorch for NVIDIA's and AMD's GPUs only")


from anyi2v.operators.triton import group_norm as group_norm_module  # noqa: E402
from anyi2v.operators.triton.geglu import geglu  # noqa: E402
from anyi2v.operators.triton.group_norm import group_norm  # noqa: E402
from anyi2v.operators.triton.layer_norm import layer_norm  # noqa: E402
from anyi2v.operators.triton.over_frames import attend_over_frames  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Of the largest value: some hundred float32 operations; else the rounding of inputs' products and of the result."""


def draw(seed: int, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def check(ours: Callable[..., Tensor], plain: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Results with and without autograd, and the gradients of all inputs, against `plain` in float64."""
    xs = [x.requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    found, wanted = ours(*xs), plain(*exact)
    weights = draw(1, torch.float64, *wanted.shape)
    back = torch.autograd.grad(found, xs, weights.to(found.dtype))
    right = torch.autograd.grad(wanted, exact, weights)
    alone = ours(*(x.detach() for x in xs))
    assert torch.equal(alone, found)
    for a, b in zip((found, *back), (wanted, *right), strict=True):
        assert a.dtype == inputs[0].dtype
        close = CLOSE[a.dtype] * max(1.0, b.detach().abs().max().item())
        torch.testing.assert_close(a.double(), b, rtol=0, atol=close)


@settings(max_examples=12, deadline=None)
@given(
    n=st.integers(1, 3),
    cells=st.integers(2, 400),
    groups=st.sampled_from([1, 2, 4, 32]),
    width=st.integers(1, 80),
    silu=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_group_norm(n: int, cells: int, groups: int, width: int, silu: bool, dtype: torch.dtype, seed: int) -> None:
    width = 1 + width % (256 // groups)
    channels = groups * width
    weight, bias = draw(seed, dtype, channels), draw(seed + 1, dtype, channels)

    def plain(x: Tensor) -> Tensor:
        y = F.group_norm(x.transpose(1, 2), groups, weight.double(), bias.double(), 0.1).transpose(1, 2)
        return F.silu(y) if silu else y

    check(
        lambda x: group_norm(x, weight, bias, groups, 0.1, silu), plain, 2 * draw(seed + 2, dtype, n, cells, channels)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_group_norm_of_cells_that_many_programs_share(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes several tiles, the last of them partly beyond the map."""
    monkeypatch.setattr(group_norm_module, "ROWS", 8)
    monkeypatch.setattr(group_norm_module, "MOST_SPLITS", 4)
    cells, channels = 8 * 4 * 3 + 7, 64
    weight, bias = draw(0, dtype, channels), draw(1, dtype, channels)

    def plain(x: Tensor) -> Tensor:
        return F.silu(F.group_norm(x.transpose(1, 2), 32, weight.double(), bias.double(), 1e-3).transpose(1, 2))

    check(lambda x: group_norm(x, weight, bias, 32, 1e-3, True), plain, draw(2, dtype, 1, cells, channels) + 1)


@settings(max_examples=12, deadline=None)
@given(
    rows=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    channels=st.integers(2, 300),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_layer_norm(rows: list[int], channels: int, dtype: torch.dtype, seed: int) -> None:
    weight, bias = draw(seed, dtype, channels), draw(seed + 1, dtype, channels)

    def plain(x: Tensor) -> Tensor:
        return F.layer_norm(x, (channels,), weight.double(), bias.double(), 0.1)

    check(lambda x: layer_norm(x, weight, bias, 0.1), plain, 3 * draw(seed + 2, dtype, *rows, channels) - 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_with_a_shift_for_each_frame(dtype: torch.dtype) -> None:
    weight, bias, shift = draw(0, dtype, 20), draw(1, dtype, 20), draw(2, dtype, 5, 20)

    def plain(x: Tensor) -> Tensor:
        normed = F.layer_norm(x, (20,), weight.double(), bias.double(), 0.1)
        return normed + shift.double()[:, None, None]

    check(lambda x: layer_norm(x, weight, bias, 0.1, shift), plain, draw(3, dtype, 2, 5, 3, 7, 20))


@settings(max_examples=12, deadline=None)
@given(
    rows=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    width=st.integers(1, 600),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_geglu(rows: list[int], width: int, dtype: torch.dtype, seed: int) -> None:
    def plain(x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * F.gelu(gate)

    check(geglu, plain, 2 * draw(seed, dtype, *rows, 2 * width))


@settings(max_examples=12, deadline=None)
@given(
    clips=st.integers(1, 2),
    frames=st.integers(1, 32),
    places=st.integers(1, 5),
    heads=st.integers(1, 3),
    width=st.integers(1, 170),
    together=st.booleans(),
    # the interpreter knows no products of bfloat16
    dtype=st.sampled_from(DTYPES if DEVICE == "cuda" else [torch.float32, torch.float16]),
    seed=st.integers(0, 2**31),
)
def test_attention_over_frames(
    clips: int, frames: int, places: int, heads: int, width: int, together: bool, dtype: torch.dtype, seed: int
) -> None:
    """Also where query, key and value are parts of one tensor."""
    channels = heads * width

    def plain(*qkv: Tensor) -> Tensor:
        q, k, v = (x.permute(0, 2, 1, 3).unflatten(-1, (heads, -1)).transpose(2, 3) for x in qkv)
        return F.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(-2).permute(0, 2, 1, 3)

    if together:

        def parts(x: Tensor) -> list[Tensor]:
            return [x[..., i * channels : (i + 1) * channels] for i in range(3)]

        check(
            lambda x: attend_over_frames(*parts(x), heads),  # pyright: ignore[reportCallIssue]
            lambda x: plain(*parts(x)),
            draw(seed, dtype, clips, frames, places, 3 * channels),
        )
    else:
        qkv = [draw(seed + i, dtype, clips, frames, places, channels) for i in range(3)]
        check(lambda q, k, v: attend_over_frames(q, k, v, heads), plain, *qkv)
