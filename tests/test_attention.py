"""The fast ways of attention equal the plain one."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anyi2v.backbone.attention import probabilities, weigh
from anyi2v.operators import attention
from anyi2v.operators.cpu import attention as module
from anyi2v.operators.cpu.attention import in_parts


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    queries=st.integers(1, 40),
    keys=st.integers(1, 90),
    heads=st.sampled_from([1, 2, 4]),
    width=st.sampled_from([8, 16, 40]),
    seed=st.integers(0, 2**31),
)
@example(batch=4, queries=8, keys=8, heads=2, width=8, seed=0)  # sequences side by side
@example(batch=2, queries=7, keys=1, heads=2, width=8, seed=0)  # all the weight on one key
@example(batch=9, queries=5, keys=5, heads=2, width=8, seed=0)
@example(batch=3, queries=8, keys=8, heads=2, width=8, seed=0)  # which do not divide
def test_fused_attention_equals_its_definition(
    batch: int, queries: int, keys: int, heads: int, width: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(batch, length, heads * width, generator=generator).requires_grad_()
        for length in (queries, keys, keys)
    )
    fused, plain = attention(query, key, value, heads), weigh(probabilities(query, key, heads), value)
    # sums of at most 90 products of float32, in another order and with other exponentials
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(fused.square().sum(), (query, key, value)),
        torch.autograd.grad(plain.square().sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    # in bfloat16 weights and result are rounded to 8 bits: 2^-8 each, of values below 4
    for grad in (True, False):
        q, k, v = (t.detach().bfloat16().requires_grad_(grad) for t in (query, key, value))
        exact = weigh(probabilities(q.float(), k.float(), heads), v.float())
        torch.testing.assert_close(attention(q, k, v, heads).float(), exact, rtol=0.02, atol=0.03)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 5),
    queries=st.integers(1, 40),
    keys=st.integers(1, 40),
    heads=st.sampled_from([1, 2, 3]),
    scores=st.sampled_from([1, 2000, 2**19]),
    safe=st.sampled_from([0.5, 2.0**60]),
    half=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_attention_in_parts_equals_its_definition(
    batch: int, queries: int, keys: int, heads: int, scores: int, safe: float, half: bool, seed: int
) -> None:
    """With the largest score subtracted (no sum of powers lies between 2 and 1/2), and without."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.bfloat16 if half else torch.float32
    given = [torch.randn(batch, n, heads * 4, generator=generator).to(dtype) for n in (queries, keys, keys)]
    ours, exact = ([x.to(kind).requires_grad_() for x in given] for kind in (dtype, torch.float64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SCORES", scores)
        patch.setattr(module, "SAFE", safe)
        query, key, value = ours
        found = in_parts(query, key, value, heads)
        query, key, value = exact
        wanted = weigh(probabilities(query, key, heads), value)
        back = torch.autograd.grad(found.double().square().sum(), ours)
    # float32 rounds sums of 40 products; bfloat16 rounds weights, their gradients and results to 8 bits
    rtol, atol = (0.03, 0.1) if half else (1e-5, 3e-5)
    torch.testing.assert_close(found.double(), wanted, rtol=rtol, atol=atol / 3)
    for x, y in zip(back, torch.autograd.grad(wanted.square().sum(), exact), strict=True):
        torch.testing.assert_close(x.double(), y, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_many_scores_of_narrow_heads_are_done_in_parts(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.dtype] = []
    monkeypatch.setattr(module, "in_parts", lambda q, k, v, heads: calls.append(q.dtype) or q)
    # the last three: heads too wide, too wide for so many keys, too few scores
    for count, keys, width in ((512, 16, 8), (512, 16, 16), (512, 32, 8), (512, 16, 17), (512, 32, 16), (8, 16, 8)):
        x = torch.zeros(count, keys, 2 * width, dtype=dtype)
        attention(x, x, x, 2)
    assert calls == ([] if dtype == torch.float64 else 3 * [dtype])


@pytest.mark.parametrize("sign", [0, 1, -1])
@pytest.mark.parametrize("size", [1.0, 10.0, 100.0])
def test_scores_of_any_size_have_finite_powers(size: float, sign: int) -> None:
    """Of both signs, or all positive, whose powers overflow, or all negative, whose powers vanish."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (size * torch.randn(2, 20, 8, generator=generator) for _ in range(3))
    if sign:
        query, key = query.abs(), sign * key.abs()
    query, key, value = (x.requires_grad_() for x in (query, key, value))
    found = in_parts(query, key, value, 2)
    exact = weigh(probabilities(query.double(), key.double(), 2), value.double())
    # scores of 40 000 are rounded by 2e-3 in float32, and so are the weights
    torch.testing.assert_close(found.double(), exact, rtol=1e-5 * size, atol=1e-5 * size)
    assert all(x.isfinite().all() for x in torch.autograd.grad(found.sum(), (query, key, value)))


def test_attention_in_parts_stays_in_float32_under_autocast() -> None:
    """Which micro is trained under."""
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(2, 20, 8, generator=generator).requires_grad_() for _ in range(3)]
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            query, key, value = given
            found = in_parts(query, key, value, 2)
            results.append((found, *torch.autograd.grad(found.sum(), given)))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
