"""Balancing attention and gated units: functions stay, moment maps vanish, representatives are unique."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from fibration.balance._layers._attention import attention, query_key_norm, value_output
from fibration.balance._layers._gated import gated

SIZE = np.linalg.norm


def orthonormal(rng, m, n):
    return np.linalg.qr(rng.normal(size=(m, n)))[0]


def invertible(rng, d, spread=1.0):
    return orthonormal(rng, d, d) * np.exp(spread * rng.normal(size=d)) @ orthonormal(rng, d, d)


# Attention


def rotated(x, rope, rotary, base=100.0):
    """Rotary embedding of (tokens, d), written out plane by plane."""
    if not rope:
        return x
    turned = x.copy()
    half = rotary // 2
    for j in range(half):
        a, b = (j, j + half) if rope == "half" else (2 * j, 2 * j + 1)
        angle = np.arange(len(x)) * base ** (-j / half)
        turned[:, a] = np.cos(angle) * x[:, a] - np.sin(angle) * x[:, b]
        turned[:, b] = np.sin(angle) * x[:, a] + np.cos(angle) * x[:, b]
    return turned


def layer(weights, x, heads, groups, rope=False, rotary=None):
    """An attention layer with softmax; query heads of a group are contiguous."""
    WQ, WK, bQ, bK, WV, WO, bV = weights
    d = len(WK) // heads
    rotary = d if rotary is None else rotary
    Q, K, V = x @ WQ.T + bQ, x @ WK.T + bK, x @ WV.T + bV
    out = []
    for i in range(heads * groups):
        h = slice((i // groups) * d, (i // groups + 1) * d)
        q, k = rotated(Q[:, i * d : (i + 1) * d], rope, rotary), rotated(K[:, h], rope, rotary)
        logits = q @ k.T / np.sqrt(d)
        weights_ = np.exp(logits - logits.max(axis=1, keepdims=True))
        out.append(weights_ / weights_.sum(axis=1, keepdims=True) @ V[:, h])
    return np.hstack(out) @ WO.T


def random_layer(seed, heads, groups, d, m=10):
    rng = np.random.default_rng(seed)
    h, g = heads * d, heads * groups * d
    shapes = [(g, m), (h, m), (g,), (h,), (h, m), (m, g), (h,)]
    return [rng.normal(size=shape) * scale for shape, scale in zip(shapes, (3, 0.1, 3, 0.1, 2, 0.2, 2), strict=True)]


def balanced_layer(weights, heads, groups, rope=False, rotary=None, strength=1.0):
    WQ, WK, bQ, bK, WV, WO, bV = weights
    first, one = attention(WQ, WK, bQ, bK, heads=heads, groups=groups, rope=rope, rotary=rotary, strength=strength)
    (WV, WO, bV), two = value_output(WV, WO, bV, heads=heads, groups=groups, strength=strength)
    return [*first, WV, WO, bV], (one, two)


def moment(weights, heads, groups):
    """μ of each key head: (queries and keys, values and outputs)."""
    WQ, WK, bQ, bK, WV, WO, bV = weights
    d = len(WK) // heads
    found = []
    for h in range(heads):
        rows = slice(h * d, (h + 1) * d)
        keys, values = (np.column_stack([W, b])[rows] for W, b in ((WK, bK), (WV, bV)))
        first, second = keys @ keys.T, values @ values.T
        for i in range(h * groups, (h + 1) * groups):
            query = np.column_stack([WQ, bQ])[i * d : (i + 1) * d]
            output = WO[:, i * d : (i + 1) * d]
            first, second = first - query @ query.T, second - output.T @ output
        found.append((first, second))
    return found


CASES = [
    (1, 1, False, None),
    (3, 1, False, None),
    (2, 3, False, None),
    (1, 4, "half", None),
    (2, 2, "interleaved", None),
    (2, 1, "half", 4),
    (2, 2, "interleaved", 2),
]


@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize(("heads", "groups", "rope", "rotary"), CASES)
def test_attention_keeps_its_function(heads, groups, rope, rotary, strength):
    weights = random_layer(0, heads, groups, 6)
    new, reports = balanced_layer(weights, heads, groups, rope, rotary, strength)
    x = np.random.default_rng(1).normal(size=(9, 10))
    old_out, new_out = (layer(w, x, heads, groups, rope, rotary) for w in (weights, new))
    assert SIZE(new_out - old_out) < 1e-12 * SIZE(old_out)
    if rope and rotary != 2:  # the layout of the planes matters
        wrong, _ = balanced_layer(weights, heads, groups, "half" if rope == "interleaved" else "interleaved", rotary)
        assert SIZE(layer(wrong, x, heads, groups, rope, rotary) - old_out) > 1e-3 * SIZE(old_out)
    for report in reports:
        assert report.change < 5e-15
        assert report.note == ""
    turned = (6 if rotary is None else rotary) if rope else 0
    for (qk, vo), (old_qk, old_vo) in zip(moment(new, heads, groups), moment(weights, heads, groups), strict=True):
        theta, size = 1 - strength, 1e-13 * max(SIZE(old_qk), SIZE(old_vo))
        assert SIZE(vo - theta * old_vo) < size
        rest = slice(turned, None)
        assert SIZE(qk[rest, rest] - theta * old_qk[rest, rest]) < size
        pairs = [(j, j + turned // 2) if rope == "half" else (2 * j, 2 * j + 1) for j in range(turned // 2)]
        for a, b in pairs:
            assert abs(qk[a, a] + qk[b, b] - theta * (old_qk[a, a] + old_qk[b, b])) < size
    if strength == 1:
        assert all(report.imbalance[1] < 1e-14 < 1e-3 < report.imbalance[0] for report in reports)


def test_against_torch_scaled_dot_product_attention():
    heads, groups, d, m = 2, 2, 8, 12
    weights = random_layer(3, heads, groups, d, m)
    new, _ = balanced_layer(weights, heads, groups)
    x = torch.from_numpy(np.random.default_rng(4).normal(size=(7, m)))

    def forward(given):
        WQ, WK, bQ, bK, WV, WO, bV = map(torch.from_numpy, given)
        q, k, v = (x @ W.T + b for W, b in ((WQ, bQ), (WK, bK), (WV, bV)))
        q = q.reshape(7, heads * groups, d).transpose(0, 1)
        k, v = (z.reshape(7, heads, d).transpose(0, 1).repeat_interleave(groups, 0) for z in (k, v))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return (mixed.transpose(0, 1).reshape(7, -1) @ WO.T).numpy()

    old = forward(weights)
    assert SIZE(forward(new) - old) < 1e-12 * SIZE(old)


def test_the_numbers_of_the_specification_for_grouped_queries():
    weights = [W / 32**0.5 for W in random_layer(5, 1, 4, 8, 32)]
    new, _ = balanced_layer(weights, 1, 4)
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(2, 20, 32))

    def logits(given):
        WQ, WK, bQ, bK = given[:4]
        return np.stack(
            [(x @ Q.T + b) @ (y @ WK.T + bK).T for Q, b in zip(WQ.reshape(4, 8, 32), bQ.reshape(4, 8), strict=True)]
        )

    old = logits(weights)
    assert SIZE(logits(new) - old) < 4e-15 * SIZE(old)
    assert SIZE(moment(new, 1, 4)[0][0]) < 4e-14


@pytest.mark.parametrize("rope", [False, "half", "interleaved"])
def test_moduli_are_unique_from_random_rescalings(rope):
    """Whatever function-preserving g is applied first, the balanced moduli are the same."""
    heads, groups, d = 2, 2, 6
    weights = random_layer(7, heads, groups, d)
    x = np.random.default_rng(8).normal(size=(5, 10))
    reference, _ = balanced_layer(weights, heads, groups, rope)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        WQ, WK, bQ, bK, WV, WO, bV = (W.copy() for W in weights)
        for h in range(heads):
            if rope:
                c = np.exp(rng.normal(size=3))
                g = np.diag(np.concatenate([c, c]) if rope == "half" else np.repeat(c, 2))
            else:
                g = invertible(rng, d)
            f, rows = invertible(rng, d), slice(h * d, (h + 1) * d)
            WK[rows], bK[rows] = g @ WK[rows], g @ bK[rows]
            WV[rows], bV[rows] = f @ WV[rows], f @ bV[rows]
            for i in range(h * groups, (h + 1) * groups):
                queries = slice(i * d, (i + 1) * d)
                WQ[queries], bQ[queries] = np.linalg.solve(g.T, WQ[queries]), np.linalg.solve(g.T, bQ[queries])
                WO[:, queries] = WO[:, queries] @ np.linalg.inv(f)
        moved = [WQ, WK, bQ, bK, WV, WO, bV]
        out = layer(weights, x, heads, groups, rope)
        assert SIZE(layer(moved, x, heads, groups, rope) - out) < 1e-11 * SIZE(out)
        new, _ = balanced_layer(moved, heads, groups, rope)
        for h in range(heads):
            rows = slice(h * d, (h + 1) * d)
            found, expected = new[1][rows], reference[1][rows]
            if rope:  # no rotation is left free
                np.testing.assert_allclose(found, expected, rtol=1e-9, atol=0)
            np.testing.assert_allclose(found.T @ found, expected.T @ expected, rtol=0, atol=1e-9 * SIZE(expected) ** 2)
            values, others = new[4][rows], reference[4][rows]
            np.testing.assert_allclose(values.T @ values, others.T @ others, rtol=0, atol=1e-9 * SIZE(others) ** 2)


def test_dead_heads_and_planes_are_left_alone():
    weights = random_layer(9, 3, 1, 4)
    weights[1][4:8], weights[3][4:8] = 0, 0  # the keys of head 1
    new, (report, _) = balanced_layer(weights, 3, 1)
    np.testing.assert_array_equal(new[0][4:8], weights[0][4:8])
    assert report.note.startswith("head 1")
    assert report.rank == 0
    new, (report, _) = balanced_layer(weights, 3, 1, "half")
    np.testing.assert_array_equal(new[0][4:8], weights[0][4:8])
    assert report.note == "head 1: 2 of 2 scales left alone: one side is zero"


def test_attention_without_biases_and_in_half_precision():
    WQ, WK, bQ, _, WV, WO, _ = (W.astype(np.float16) for W in random_layer(10, 2, 1, 4))
    (q, _, none, other), report = attention(WQ, WK, heads=2)
    assert none is None
    assert other is None
    assert q.dtype == np.float16
    assert report.change < 2e-3
    (_, _, b, other), _ = attention(WQ, WK, bQ, heads=2)  # a bias of the queries alone
    assert b.shape == bQ.shape
    assert other is None
    (v, o, none), _ = value_output(jnp.asarray(WV), WO, heads=2)
    assert none is None
    assert isinstance(v, jnp.ndarray)
    assert isinstance(o, np.ndarray)
    (same, _, _, _), report = attention(WQ, WK, heads=2, strength=0.0)
    np.testing.assert_array_equal(same, WQ)
    assert report.moved == 0 == report.change


# Gains of normalised queries and keys


@pytest.mark.parametrize("rope", [False, "half", "interleaved"])
@pytest.mark.parametrize("rotary", [None, 4])
def test_gains_after_a_normalisation(rope, rotary):
    if not rope and rotary:
        return
    heads, groups, d = 2, 3, 8
    rng = np.random.default_rng(11)
    sizes = (heads * groups * d, heads * d, heads * groups * d, heads * d)
    gains = [rng.normal(size=n) * s for n, s in zip(sizes, (5, 0.2, 5, 0.2), strict=True)]
    new, report = query_key_norm(*gains, heads=heads, groups=groups, rope=rope, rotary=rotary)
    x = rng.normal(size=(2, heads * groups, 7, d))
    x /= np.sqrt(np.mean(x**2, axis=-1, keepdims=True))

    def logits(q, k, shift_q, shift_k):
        out = []
        for i in range(heads * groups):
            mine, key = slice(i * d, (i + 1) * d), slice(i // groups * d, (i // groups + 1) * d)
            turned = [
                rotated(x[0, i] * q[mine] + shift_q[mine], rope, rotary or d),
                rotated(x[1, i // groups] * k[key] + shift_k[key], rope, rotary or d),
            ]
            out.append(turned[0] @ turned[1].T)
        return np.array(out)

    old = logits(*gains)
    assert SIZE(logits(*new) - old) < 1e-14 * SIZE(old)
    q = sum(v.reshape(heads, groups, d) ** 2 for v in (new[0], new[2])).sum(axis=1)
    k = sum(v.reshape(heads, d) ** 2 for v in (new[1], new[3]))
    turned = (rotary or d) if rope else 0
    half = turned // 2
    for s in (q, k):
        planes = s[:, :half] + s[:, half:turned] if rope == "half" else s[:, 0:turned:2] + s[:, 1:turned:2]
        s[:, :half], s[:, half:turned] = planes, 0
    np.testing.assert_allclose(q, k, rtol=1e-13)
    assert report.imbalance[1] < 1e-15
    assert report.change < 1e-15


# Gated units


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_gated_units_keep_their_function(strength):
    rng = np.random.default_rng(12)
    h, m = 1100, 6  # more than are computed with at a time
    gate, up, down, b = (
        rng.normal(size=(h, m)),
        9 * rng.normal(size=(h, m)),
        rng.normal(size=(4, h)),
        rng.normal(size=h),
    )
    (new_up, new_down, new_b), report = gated(up, down, b, strength=strength)
    x = rng.normal(size=(20, m))

    def forward(up, down, b):
        z = x @ gate.T
        return (z / (1 + np.exp(-z)) * (x @ up.T + b)) @ down.T

    old = forward(up, down, b)
    assert SIZE(forward(new_up, new_down, new_b) - old) < 1e-14 * SIZE(old)
    before, after = (
        np.sum(d**2, axis=0) - np.sum(u**2, axis=1) - c**2 for u, d, c in ((up, down, b), (new_up, new_down, new_b))
    )
    np.testing.assert_allclose(after, (1 - strength) * before, rtol=0, atol=1e-13 * np.abs(before).max())
    total = SIZE(np.column_stack([up, b])) ** 2 + SIZE(down) ** 2
    assert report.imbalance[0] == pytest.approx(SIZE(before) / total, rel=1e-12)
    old_products, new_products = (
        np.einsum("jk,ki->kji", d, np.column_stack([u, c])) for u, d, c in ((up, down, b), (new_up, new_down, new_b))
    )
    assert report.change == pytest.approx(SIZE(new_products - old_products) / SIZE(old_products), abs=1e-16)
    assert report.moved == pytest.approx(
        np.sqrt(SIZE(new_up - up) ** 2 + SIZE(new_down - down) ** 2 + SIZE(new_b - b) ** 2) / np.sqrt(total), rel=1e-12
    )


def test_gated_units_are_unique_and_dead_ones_are_left_alone():
    rng = np.random.default_rng(13)
    up, down = rng.normal(size=(7, 5)), rng.normal(size=(3, 7))
    down[:, 2], up[4] = 0, 0
    c = np.exp(2 * rng.normal(size=7))
    (one_up, one_down, none), report = gated(up, down)
    (two_up, two_down, _), _ = gated(up * c[:, None], down / c)
    alive = [0, 1, 3, 5, 6]
    np.testing.assert_allclose(two_up[alive], one_up[alive], rtol=1e-9)
    np.testing.assert_allclose(two_down[:, alive], one_down[:, alive], rtol=1e-9)
    np.testing.assert_array_equal(one_up[2], up[2])
    assert none is None
    assert report.rank == 5
    assert report.note == "2 of 7 units left alone: one side is zero"
    up32, down32 = up.astype(np.float32), jnp.asarray(down, jnp.float16)
    (a, b, _), rounded = gated(up32, down32)
    assert a.dtype == np.float32
    assert b.dtype == jnp.float16
    old, new = (
        np.einsum("jk,ki->kji", np.asarray(d, float), np.asarray(u, float)) for u, d in ((up32, down32), (a, b))
    )
    assert rounded.change == pytest.approx(SIZE(new - old) / SIZE(old), rel=1e-8)
