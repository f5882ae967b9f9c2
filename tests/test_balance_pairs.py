"""Balancing pairs of factors: the product stays, the moment map vanishes; and what all layers refuse."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fibration.balance._layers._attention import attention, query_key_norm, value_output
from fibration.balance._layers._gated import gated
from fibration.balance._layers._pair import pair
from fibration.errors import (
    NonFiniteDataError,
    ParameterError,
    RankLossError,
    ShapeError,
    SingularProductError,
    UnknownNameError,
)

SIZE = np.linalg.norm


def orthonormal(rng, m, n):
    return np.linalg.qr(rng.normal(size=(m, n)))[0]


def adapter(seed, m=30, n=20, r=4, condition=10.0, ratio=1e3, dtype=np.float64):
    """Factors whose product has condition number condition², B being `ratio` times as large as A."""
    rng = np.random.default_rng(seed)
    values = np.geomspace(1, 1 / condition, r)
    inner = orthonormal(rng, r, r)
    B = ratio * (orthonormal(rng, m, r) * values) @ inner
    return B.astype(dtype), (inner.T @ (orthonormal(rng, n, r) * values).T).astype(dtype)


def invertible(rng, d, spread=1.0):
    return orthonormal(rng, d, d) * np.exp(spread * rng.normal(size=d)) @ orthonormal(rng, d, d)


# Pairs


def test_an_ill_conditioned_pair_reaches_the_accuracy_of_the_specification():
    B, A = adapter(0, 400, 300, 8, condition=10**2.5, ratio=1e8)  # the product's condition is 1e5
    (new_B, new_A), report = pair(B, A)
    X = B @ A
    nuclear = np.linalg.svd(X, compute_uv=False).sum()
    assert SIZE(new_B @ new_A - X) < 5e-15 * SIZE(X)
    assert SIZE(new_B.T @ new_B - new_A @ new_A.T) < 5e-15 * SIZE(new_A) ** 2
    assert abs(SIZE(new_B) ** 2 + SIZE(new_A) ** 2 - 2 * nuclear) < 1e-12 * nuclear
    # what the report says, computed the long way
    assert report.rank == 8
    assert report.note == ""
    np.testing.assert_allclose(report.norms, [[SIZE(B), SIZE(A)], [SIZE(new_B), SIZE(new_A)]], rtol=1e-12)
    before = SIZE(B.T @ B - A @ A.T) / (SIZE(B) ** 2 + SIZE(A) ** 2)
    assert report.imbalance[0] == pytest.approx(before, rel=1e-12)
    assert report.imbalance[1] < 1e-15
    assert report.conditions[0] == pytest.approx((np.linalg.cond(B), np.linalg.cond(A)), rel=1e-9)
    assert report.conditions[1] == pytest.approx([10**2.5] * 2, rel=1e-9)  # the root of the product's
    assert report.change < 5e-15
    way = np.hypot(SIZE(new_B - B), SIZE(new_A - A)) / np.hypot(SIZE(B), SIZE(A))
    assert report.moved == pytest.approx(way, rel=1e-12)


def test_the_change_is_that_of_the_rounded_product():
    for dtype, digits in ((np.float32, 2e-7), (np.float16, 2e-3), (ml_dtypes.bfloat16, 2e-2)):
        B, A = adapter(1, dtype=dtype, ratio=100.0)
        (new_B, new_A), report = pair(B, A)
        assert new_B.dtype == B.dtype
        assert new_A.dtype == A.dtype
        old, new = (b.astype(float) @ a.astype(float) for b, a in ((B, A), (new_B, new_A)))
        assert report.change == pytest.approx(SIZE(new - old) / SIZE(old), rel=1e-6)
        assert 0 < report.change < digits


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(1, 7)] * 3),
)
@settings(max_examples=60)
def test_pairs_of_all_shapes_keep_their_product(seed, shape):
    check_pair(seed, shape, 1.0)


@pytest.mark.parametrize("shape", [(5, 6, 3), (2, 7, 3)])
@pytest.mark.parametrize("strength", [0.0, 0.3, 0.9])
def test_partial_balancing_multiplies_the_imbalance(shape, strength):
    check_pair(0, shape, strength)


def check_pair(seed, shape, strength):
    m, n, r = shape
    rng = np.random.default_rng(seed)
    B, A = 10 ** rng.normal() * rng.normal(size=(m, r)), rng.normal(size=(r, n))
    (new_B, new_A), report = pair(B, A, strength=strength)
    assert SIZE(new_B @ new_A - B @ A) < 1e-12 * SIZE(B) * SIZE(A)
    old, new = B.T @ B - A @ A.T, new_B.T @ new_B - new_A @ new_A.T
    if max(min(m, r), min(r, n)) == min(m, n, r) or strength < 1:
        assert SIZE(new - (1 - strength) * old) < 1e-11 * (SIZE(B) ** 2 + SIZE(A) ** 2)
    else:
        assert "do not take part" in report.note
        assert report.rank == min(m, n)
        # the same orbit: ranks stay, and a living direction is balanced against a living one
        assert np.linalg.matrix_rank(new_B) == np.linalg.matrix_rank(B)
        assert np.linalg.matrix_rank(new_A) == np.linalg.matrix_rank(A)


def test_uniqueness_up_to_rotations_from_random_starts():
    rng = np.random.default_rng(2)
    B, A = adapter(2)
    results = []
    for _ in range(5):
        g = invertible(rng, 4)
        (new_B, new_A), _ = pair(B @ np.linalg.inv(g), g @ A)
        results.append((new_B @ new_B.T, new_A.T @ new_A))
    for left, right in results[1:]:
        np.testing.assert_allclose(left, results[0][0], rtol=0, atol=1e-9 * SIZE(left))
        np.testing.assert_allclose(right, results[0][1], rtol=0, atol=1e-9 * SIZE(right))


def test_nearest_is_the_nearest_of_all_rotations():
    rng = np.random.default_rng(3)
    B, A = adapter(3, ratio=5.0)
    (new_B, new_A), report = pair(B, A)
    here = SIZE(new_B - B) ** 2 + SIZE(new_A - A) ** 2
    for _ in range(50):
        Q = orthonormal(rng, 4, 4)
        assert SIZE(new_B @ Q.T - B) ** 2 + SIZE(Q @ new_A - A) ** 2 >= here
    assert pair(B, A, "svd")[1].moved > report.moved


def test_directions_that_the_other_factor_does_not_pass_on():
    B, A = adapter(4)
    B[:, 2:] = 0  # as after a step from B = 0 on one sample, only more so
    (kept_B, kept_A), kept = pair(B, A)
    (lean_B, lean_A), lean = pair(B, A, on_rank_loss="drop")
    for new_B, new_A, report in ((kept_B, kept_A, kept), (lean_B, lean_A, lean)):
        assert SIZE(new_B @ new_A - B @ A) < 1e-14 * SIZE(B @ A)
        assert report.rank == 2
        assert report.note.startswith("2 directions of the right factor")
    assert np.linalg.matrix_rank(kept_A) == 4
    assert np.linalg.matrix_rank(lean_A) == 2
    assert lean.imbalance[1] < 1e-15 < kept.imbalance[1]
    with pytest.raises(RankLossError):
        pair(B, A, on_rank_loss="raise")
    with pytest.raises(SingularProductError):
        pair(B, A, "polar")
    P = np.array([[1.0, 0.0]])
    (same_B, same_A), report = pair(P, np.array([[0.0], [2.0]]))
    assert np.array_equal(same_B, P)
    assert same_A.tolist() == [[0.0], [2.0]]
    assert "product is zero" in report.note


def test_kinds_of_arrays_are_kept():
    B, A = adapter(5)
    (new_B, new_A), _ = pair(jnp.asarray(B, jnp.bfloat16), A.astype(np.float32))
    assert isinstance(new_B, jnp.ndarray)
    assert new_B.dtype == jnp.bfloat16
    assert isinstance(new_A, np.ndarray)
    assert new_A.dtype == np.float32
    rng = np.random.default_rng(0)
    Z, Y = B + 1j * rng.normal(size=B.shape), A - 1j * rng.normal(size=A.shape)
    (new_Z, new_Y), report = pair(Z, Y)
    assert SIZE(new_Z.conj().T @ new_Z - new_Y @ new_Y.conj().T) < 1e-14 * SIZE(new_Z) ** 2
    assert report.change < 1e-14


def broken(W, value=np.nan):
    W = W.copy()
    W[0, 0] = value
    return W


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda B, A: pair(0 * B, A), ParameterError, "train first, or leave this pair alone"),
        (lambda B, A: pair(B, 0 * A), ParameterError, "A is zero"),
        (lambda B, A: pair(B, A[:3]), ShapeError, "as many columns in B"),
        (lambda B, A: pair(B[:, 0], A), ShapeError, "shape"),
        (lambda B, A: pair("B", A), ShapeError, "matrix of numbers"),
        (lambda B, A: pair(broken(B), A), NonFiniteDataError, "B holds 1"),
        (lambda B, A: pair(B, broken(A, np.inf)), NonFiniteDataError, "A holds 1"),
        (lambda B, A: pair(B, A, strength=1.5), ParameterError, "strength"),
        (lambda B, A: pair(B, A, strength=np.nan), ParameterError, "strength"),
        (lambda B, A: pair(B, A, "nearer"), UnknownNameError, "nearest"),
        (lambda B, A: pair(B, A, on_rank_loss="no"), UnknownNameError, "keep"),
        (lambda B, A: jax.jit(lambda B: pair(B, A))(B), ParameterError, "transformation"),
        (lambda B, A: attention(B, B, rope=True), ParameterError, "half"),
        (lambda B, A: attention(B, B, rope="spiral"), UnknownNameError, "interleaved"),
        (lambda B, A: attention(B, B, rotary=4), ParameterError, "without rope"),
        (lambda B, A: attention(B, B, rope="half", rotary=3), ParameterError, "even number"),
        (lambda B, A: attention(B, B, rope="half", rotary=32), ParameterError, "even number"),
        (lambda B, A: attention(B[:15], B[:15], rope="half"), ParameterError, "even number"),
        (lambda B, A: attention(B, B, heads=7), ShapeError, "heads·d"),
        (lambda B, A: attention(B, B, heads=0), ParameterError, "positive integer"),
        (lambda B, A: attention(B, B, groups=True), ParameterError, "positive integer"),
        (lambda B, A: attention(B, B[:10]), ShapeError, "groups"),
        (lambda B, A: attention(B, B, np.ones(3)), ShapeError, "b_Q"),
        (lambda B, A: attention(broken(B), B), NonFiniteDataError, "W_Q"),
        (lambda B, A: attention(B, B, np.full(30, np.nan)), NonFiniteDataError, "b_Q"),
        (value_output, ShapeError, "W_O"),
        (gated, ShapeError, "as many rows in up"),
        (lambda B, A: gated(B, broken(B.T)), NonFiniteDataError, "down"),
        (lambda B, A: query_key_norm(np.ones(4), np.ones(5)), ShapeError, "gamma"),
        (lambda B, A: query_key_norm(np.ones(4), np.ones((2, 2))), ShapeError, "gamma_k"),
    ],
)
def test_bad_input_is_refused_by_name(call, error, text):
    with pytest.raises(error, match=text):
        call(*adapter(0))


def test_norms_whose_squares_overflow():
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(20, 4)) * 1e-160, rng.normal(size=(4, 30)) * 1e160
    (B, A), report = pair(left, right)
    np.testing.assert_allclose(B @ A, left @ right, rtol=1e-11)
    np.testing.assert_allclose(B.T @ B, A @ A.T, atol=1e-13 * np.linalg.norm(A) ** 2)
    assert np.isnan(report.imbalance[0])
    assert report.change < 1e-14
