"""Balanced chains in closed form: gauges, ranks, partial balance, projection."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
from hypothesis import assume, given
from hypothesis import strategies as st

import fibration as fb
from chains import chain, closed_widths, distance, field, norm, seeds, unitary
from fibration.errors import (
    BottleneckError,
    ConditioningWarning,
    ParameterError,
    RankLossError,
    ShapeError,
    SingularProductError,
    StepSizeError,
    UnknownNameError,
)

B = fb.balance


def check_balanced(Ws, X, depth, accuracy=1e-13):
    scale = norm(Ws) ** 2
    np.testing.assert_allclose(B.end_to_end(Ws), X, atol=accuracy * np.linalg.norm(X))
    assert norm(B.imbalance(Ws)) <= accuracy * scale
    np.testing.assert_allclose(B.regularizer(Ws), B.minimum_on_fibre(X, depth, rtol=1e-13), rtol=1e-11)


@given(seeds(), closed_widths(), field(), st.sampled_from(["svd", "nearest"]))
def test_balanced_chains_are_balanced_and_shortest(seed, widths, which, gauge):
    Ws = chain(seed, widths, which)
    X = B.end_to_end(Ws)
    balanced = B.balanced(Ws, gauge)
    # X is known to the rounding of the products it is made of
    accuracy = 1e-13 * np.prod([np.linalg.norm(W, 2) for W in Ws]) / np.linalg.norm(X, 2)
    check_balanced(balanced, X, len(Ws), max(accuracy, 1e-13))
    assert [V.shape for V in balanced] == [W.shape for W in Ws]
    assert all(V.dtype == W.dtype for V, W in zip(balanced, Ws, strict=True))
    # all factors have the same singular values
    values = [np.linalg.svd(V, compute_uv=False)[: min(widths)] for V in balanced]
    np.testing.assert_allclose(values, np.broadcast_to(values[0], np.shape(values)), atol=1e-12 * norm(Ws))


@given(seeds(), st.integers(1, 4), st.integers(2, 5), field())
def test_the_polar_gauge_is_the_geometric_mean(seed, d, depth, which):
    # P_p = (S_p S_p*)⁻¹ #_{p/N} (T_p* T_p), and W_1 of the polar gauge is P_1^{1/2} W_1
    Ws = chain(seed, (d,) * (depth + 1), which, spread=0.2)
    S, T = B.partial_products(Ws)
    assume(max(np.linalg.cond(W) for W in [*S, *T]) <= 1e3)
    polar, scale = B.balanced(Ws, "polar"), np.eye(d)
    check_balanced(polar, B.end_to_end(Ws), depth, 1e-10)
    for p in range(1, depth):
        A, C = np.linalg.inv(S[p] @ S[p].conj().T), T[p].conj().T @ T[p]
        root = scipy.linalg.sqrtm(A)
        inverse = np.linalg.inv(root)
        P = root @ scipy.linalg.fractional_matrix_power(inverse @ C @ inverse, p / depth) @ root
        g = scipy.linalg.sqrtm(P)
        np.testing.assert_allclose(polar[p - 1], g @ Ws[p - 1] @ np.linalg.inv(scale), rtol=1e-6, atol=1e-6 * norm(Ws))
        scale = g


def random_balanced(seed, svd, depth, widths, which):
    rng = np.random.default_rng(seed)
    u, s, vh = svd
    frames = [vh.conj().T, *(unitary(rng, d, which)[:, : len(s)] for d in widths[1:-1]), u]
    return [(b * s ** (1 / depth)) @ a.conj().T for a, b in itertools.pairwise(frames)]


@pytest.mark.parametrize("which", ["real", "complex"])
def test_the_nearest_gauge_is_nearest_for_two_factors(which):
    for seed in range(20):
        Ws = chain(seed, (4, 3, 5), which)
        svd = np.linalg.svd(B.end_to_end(Ws), full_matrices=False)
        svd = svd[0][:, :3], svd[1][:3], svd[2][:3]
        found = distance(Ws, B.balanced(Ws, "nearest"))
        others = [distance(Ws, random_balanced(k, svd, 2, (4, 3, 5), which)) for k in range(200)]
        assert found <= min(others)
        # and no small rotation brings it nearer
        balanced = B.balanced(Ws, "nearest")
        for k in range(20):
            A = np.random.default_rng(k).normal(size=(3, 3)) * 1e-3
            turn = scipy.linalg.expm(A - A.T)
            assert distance(Ws, B.act([turn], balanced)) >= found


def test_the_nearest_gauge_climbs_for_more_factors():
    for seed in range(20):
        Ws = chain(seed, (4, 3, 3, 3, 5))
        found = [distance(Ws, B.balanced(Ws, gauge)) for gauge in ("nearest", "polar", "svd")]
        assert found[0] <= min(found)
        balanced = B.balanced(Ws, "nearest")
        for k in range(10):
            A = np.random.default_rng(k).normal(size=(3, 3, 3)) * 1e-3
            assert distance(Ws, B.act([scipy.linalg.expm(a - a.T) for a in A], balanced)) >= found[0] * (1 - 1e-12)


def test_lora_pairs_with_bad_scales_and_conditions():
    # Spec V11: 400 × 300, r = 8, condition 1e5, scales 1e8 apart
    rng = np.random.default_rng(0)
    left, right = np.linalg.qr(rng.normal(size=(400, 8)))[0], np.linalg.qr(rng.normal(size=(300, 8)))[0]
    values = np.logspace(0, -5, 8)
    mix = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    Ws = [1e4 * mix @ (right * np.sqrt(values)).T, 1e-4 * (left * np.sqrt(values)) @ mix.T]
    X = (left * values) @ right.T
    balanced = B.balanced(Ws)
    assert np.linalg.norm(B.end_to_end(balanced) - X) < 2e-15 * np.linalg.norm(X)
    assert norm(B.imbalance(balanced)) < 2e-15 * norm(balanced) ** 2
    np.testing.assert_allclose(norm(balanced) ** 2, 2 * values.sum(), rtol=1e-12)
    single = [W.astype(np.float32) for W in Ws]
    found = B.balanced(single)
    assert all(W.dtype == np.float32 for W in found)
    exact = single[1].astype(float) @ single[0].astype(float)
    assert np.linalg.norm(found[1].astype(float) @ found[0].astype(float) - exact) < 2e-7 * np.linalg.norm(exact)


def test_arrays_come_back_as_they_were():
    Ws = [jnp.asarray(W, jnp.bfloat16) for W in chain(0, (4, 2, 3))]
    balanced = B.balanced(Ws)
    assert all(isinstance(W, jax.Array) and W.dtype == jnp.bfloat16 for W in balanced)
    exact = B.end_to_end([np.asarray(W, float) for W in Ws])
    assert np.linalg.norm(B.end_to_end([np.asarray(W, float) for W in balanced]) - exact) < 2e-2 * np.linalg.norm(exact)
    with jax.enable_x64(False):
        wide = B.balanced(chain(0, (4, 2, 3)))  # NumPy stays in float64 whatever JAX's default
        assert wide[0].dtype == np.float64
        assert norm(B.imbalance(wide)) < 1e-14


@pytest.mark.parametrize("gauge", ["svd", "polar", "nearest"])
@pytest.mark.parametrize("widths", [(4, 2, 3), (4, 3, 3, 3, 5)])
def test_balancing_within_jit_is_the_same(widths, gauge):
    Ws = [jnp.asarray(W) for W in chain(2, widths)]
    traced, plain = jax.jit(lambda Ws: B.balanced(Ws, gauge))(Ws), B.balanced(Ws, gauge)
    for V, W in zip(traced, plain, strict=True):
        np.testing.assert_allclose(V @ V.T, W @ W.T, atol=1e-5)
    np.testing.assert_allclose(B.end_to_end(traced), B.end_to_end(Ws), atol=1e-12)
    assert norm(B.imbalance(traced)) < 1e-12
    assert abs(distance(Ws, traced) - distance(Ws, plain)) < 1e-6 or gauge == "svd"


def test_balancing_within_jit_drops_what_is_rounding():
    Ws = [jnp.asarray(W) for W in chain(2, (3, 3, 3))]
    Ws[0] = Ws[0].at[2].set(Ws[0][0])
    traced = jax.jit(B.balanced)(Ws)
    assert norm(B.imbalance(traced)) < 1e-13
    np.testing.assert_allclose(B.end_to_end(traced), B.end_to_end(Ws), atol=1e-13)


# --- orbits that are not closed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["real", "complex"])
@pytest.mark.parametrize("widths", [(3, 5, 5, 3), (2, 4, 3, 4, 2), (4, 2, 3, 3, 4)])
def test_rank_loss_is_refused_deleted_or_kept_beside(widths, which):
    for seed in range(5):
        Ws = chain(seed, widths, which)
        X, before = B.end_to_end(Ws), B.orbit(Ws)
        assert not before.closed
        with pytest.raises(RankLossError, match="do not reach the output"):
            B.balanced(Ws)
        dropped = B.balanced(Ws, on_rank_loss="drop")
        check_balanced(dropped, X, len(Ws), 1e-12)
        assert B.orbit(dropped).ranks == (before.rank,) * len(Ws)
        kept = B.balanced(Ws, on_rank_loss="keep")
        np.testing.assert_allclose(B.end_to_end(kept), X, atol=1e-12 * np.linalg.norm(X))
        # the orbit is the same, and what is kept lies beside the balanced part
        np.testing.assert_array_equal(B.rank_pattern(kept), B.rank_pattern(Ws))
        for V, W in zip(kept, dropped, strict=True):
            rest = V - W
            assert np.linalg.norm(W.conj().T @ rest) < 1e-12 * norm(Ws) ** 2
            assert np.linalg.norm(W @ rest.conj().T) < 1e-12 * norm(Ws) ** 2
        assert B.regularizer(dropped) < B.regularizer(kept)


def test_the_start_of_an_adapter_is_refused():
    Ws = [np.random.default_rng(0).normal(size=(4, 9)), np.zeros((7, 4))]
    for choice in ("raise", "drop"):
        with pytest.raises(RankLossError, match=r"LoRA adapter before training.*every gradient"):
            B.balanced(Ws, on_rank_loss=choice)
    nothing = [np.zeros((4, 9)), np.zeros((7, 4))]
    assert norm(B.balanced(nothing)) == 0


def test_small_singular_values_are_cut_by_rtol_only():
    Ws = B.factor(np.diag([1.0, 1e-6]), (2, 2, 2, 2))
    assert B.orbit(Ws).rank == 2
    assert B.orbit(Ws, rtol=1e-4).rank == 1
    with pytest.raises(RankLossError, match="smaller rtol"):
        B.balanced(Ws, rtol=1e-4)
    assert B.orbit(B.balanced(Ws)).rank == 2
    with pytest.warns(ConditioningWarning, match=r"1\.0e-06 down.*changes by as much"):
        dropped = B.balanced(Ws, on_rank_loss="drop", rtol=1e-4)
    np.testing.assert_allclose(B.end_to_end(dropped), np.diag([1.0, 0.0]), atol=1e-14)
    with pytest.warns(ConditioningWarning):
        B.factor(np.diag([1.0, 1e-6]), (2, 1, 2), rtol=1e-4)
    with pytest.raises(ParameterError, match=r"\[0, 1\)"):
        B.minimum_on_fibre(np.eye(2), 2, rtol=2.0)


# --- factor -----------------------------------------------------------------------------------------------------------


@given(seeds(), st.lists(st.integers(1, 6), min_size=3, max_size=6), st.integers(1, 6), field(), st.booleans())
def test_factor_writes_a_matrix_as_a_balanced_chain(seed, widths, rank, which, random):
    rng, rank = np.random.default_rng(seed), min(rank, *widths)
    factors = [rng.normal(size=(widths[-1], rank)), rng.normal(size=(rank, widths[0]))]
    X = factors[0] @ factors[1] * (np.exp(1j) if which == "complex" else 1)
    options = {"gauge": "haar", "key": jax.random.key(seed % 1000)} if random else {}
    Ws = B.factor(X, widths, **options)
    assert [W.shape for W in Ws] == list(zip(widths[1:], widths[:-1], strict=True))
    check_balanced(Ws, X, len(Ws), 1e-12)
    assert B.orbit(Ws).closed
    weights = rng.uniform(0.1, 10, len(Ws))
    weighted = B.factor(X, widths, weights=list(weights), **options)
    np.testing.assert_allclose(B.end_to_end(weighted), X, atol=1e-12 * np.linalg.norm(X))
    assert norm(B.imbalance(weighted, list(weights))) < 1e-12 * max(weights) * norm(weighted) ** 2


def test_random_frames_are_uniform():
    # The mean of Q Q^T over many draws is (r/d) I, and that of Q is zero.
    draws = [
        B.factor(np.eye(4)[:, :2] @ np.eye(2, 4), (4, 3, 4), gauge="haar", key=key)[0]
        for key in jax.random.split(jax.random.key(0), 1500)
    ]
    frames = np.stack([W[:, :2] for W in draws])
    np.testing.assert_allclose(np.mean(frames @ frames.swapaxes(1, 2), axis=0), np.eye(3) * 2 / 3, atol=0.04)
    np.testing.assert_allclose(np.mean(frames, axis=0), 0, atol=0.06)


# --- strength ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("widths", "which"), [((5, 3, 4), "real"), ((9, 3, 3, 8), "complex"), ((3, 5, 5, 3), "real")])
@pytest.mark.parametrize("strength", [0.25, 0.9])
def test_strength_multiplies_every_imbalance(widths, which, strength):
    Ws = chain(1, widths, which)
    partly = B.balanced(Ws, strength=strength)
    for before, after in zip(B.imbalance(Ws), B.imbalance(partly), strict=True):
        np.testing.assert_allclose(after, (1 - strength) * before, atol=1e-13 * norm(Ws) ** 2)
    np.testing.assert_allclose(B.end_to_end(partly), B.end_to_end(Ws), atol=1e-13 * np.prod([norm([W]) for W in Ws]))
    assert B.orbit(partly).ranks == B.orbit(Ws).ranks


def test_strength_follows_the_induced_flow_and_ends_in_balance():
    Ws = chain(4, (4, 3, 3, 5))
    run = B.flow(Ws, -0.5 * np.log(0.3), rtol=1e-10, atol=1e-12)
    partly = B.balanced(Ws, strength=0.7)
    assert distance(partly, [W[-1] for W in run.params]) < 1e-6 * norm(Ws)
    for V, W in zip(B.balanced(Ws, strength=0.0), Ws, strict=True):
        np.testing.assert_array_equal(V, W)
    weights = [1.0, 4.0, 0.5]
    weighted = B.balanced(Ws, strength=0.5, weights=weights)
    for before, after in zip(B.imbalance(Ws, weights), B.imbalance(weighted, weights), strict=True):
        np.testing.assert_allclose(after, before / 2, atol=1e-13 * norm(Ws) ** 2)


# --- the nearest balanced pair ----------------------------------------------------------------------------------------


@given(seeds(), st.tuples(*[st.integers(1, 5)] * 3), field())
def test_projection_to_balanced_pairs(seed, widths, which):
    Ws = chain(seed, widths, which)
    projected = B.project(Ws)
    assert norm(B.imbalance(projected)) < 1e-13 * norm(Ws) ** 2
    squared, excess = distance(Ws, projected) ** 2, B.excess(Ws)
    d0, d1, d2 = widths
    assert squared >= excess - 1e-12 * norm(Ws) ** 2
    if d0 == d2 or d1 <= min(d0, d2):
        np.testing.assert_allclose(squared, excess, atol=1e-12 * norm(Ws) ** 2)


def test_the_projection_is_the_nearest_where_no_formula_says_so():
    # (2, 4, 4): the distance is above the excess; a search over isometries finds nothing nearer.
    for seed in range(4):
        Ws = chain(seed, (2, 4, 4))
        found = distance(Ws, B.project(Ws)) ** 2
        assert found > B.excess(Ws) * (1 + 1e-6)

        def squared(x, Ws=Ws):
            isometry = np.linalg.qr(x.reshape(4, 2))[0]
            V = (Ws[0] + Ws[1].T @ isometry) / 2
            return distance(Ws, [V, isometry @ V.T]) ** 2

        starts = np.random.default_rng(seed).normal(size=(20, 8))
        best = min(scipy.optimize.minimize(squared, x, tol=1e-12).fun for x in starts)
        assert found <= best * (1 + 1e-9)


def test_sweeps_over_pairs_converge_like_a_heat_equation():
    # Balancing neighbours exactly, one pair after the other, takes cos²(π/N) of the imbalance a sweep.
    for depth, expected in ((3, 0.25), (4, 0.5), (6, 0.75)):
        Ws = chain(0, (3,) * (depth + 1))
        sizes = []
        for _ in range(40):
            for p in range(depth - 1):
                Ws[p : p + 2] = B.balanced(Ws[p : p + 2], "polar")
            sizes.append(norm(B.imbalance(Ws)))
        last = max(k for k, size in enumerate(sizes) if size > 1e-9)
        np.testing.assert_allclose(sizes[last] / sizes[last - 1], expected, rtol=3e-3)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_had_is_named():
    Ws = chain(0, (3, 2, 3))
    with pytest.raises(BottleneckError, match="width bottleneck: a layer of width 2 for a matrix of rank 3"):
        B.factor(np.eye(3), (3, 2, 3))
    with pytest.raises(SingularProductError, match='gauge="svd" or "nearest"'):
        B.balanced(B.factor(np.diag([1.0, 0.0]), (2, 2, 2)), "polar")
    with pytest.raises(SingularProductError, match="exactly as wide"):
        B.balanced(chain(0, (2, 4, 2)), "polar")
    with pytest.raises(UnknownNameError, match="'svd', 'polar', 'nearest'"):
        B.balanced(Ws, "procrustes")
    with pytest.raises(UnknownNameError, match="on_rank_loss"):
        B.balanced(Ws, on_rank_loss="ignore")
    for strength in (-0.1, 1.5, float("nan")):
        with pytest.raises(ParameterError, match="strength"):
            B.balanced(Ws, strength=strength)
    with pytest.raises(ParameterError, match="outside of"):
        jax.jit(lambda Ws: B.balanced(Ws, strength=0.5))([jnp.asarray(W) for W in Ws])
    with pytest.raises(ShapeError, match="begin with 3 and end with 2"):
        B.factor(np.ones((2, 3)), (2, 2, 3))
    with pytest.raises(ShapeError, match="three or more"):
        B.factor(np.ones((2, 3)), (3, 2))
    with pytest.raises(ParameterError, match="without a key"):
        B.factor(np.eye(2), (2, 2, 2), gauge="haar")
    with pytest.raises(ShapeError, match="chain of 3 matrices"):
        B.project(chain(0, (2, 2, 2, 2)))
    with pytest.raises(StepSizeError, match="positive"):
        B.kempf_ness(Ws, tolerance=0.0)
