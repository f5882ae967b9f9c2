"""Chains and their fibres: products, the group, the moment map, the lowest regulariser, orbits."""

import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

import fibration as fb
from chains import chain, closed_widths, distance, field, norm, seeds, unitary
from fibration.errors import NonFiniteDataError, ParameterError, ShapeError

B = fb.balance


def group(rng, widths, which, spread=0.3):
    return [scipy.linalg.expm(spread * generator(rng, d, which)) for d in widths[1:-1]]


def generator(rng, d, which):
    A = rng.normal(size=(d, d))
    return A + 1j * rng.normal(size=(d, d)) if which == "complex" else A


@given(seeds(), st.lists(st.integers(1, 5), min_size=3, max_size=6), field())
def test_the_group_leaves_the_product_alone_and_the_moment_map_is_the_gradient_along_it(seed, widths, which):
    rng, Ws = np.random.default_rng(seed), chain(seed, widths, which)
    X = B.end_to_end(Ws)
    np.testing.assert_allclose(X, np.linalg.multi_dot(Ws[::-1]), atol=1e-13 * np.prod([norm([W]) for W in Ws]))
    moved = B.act(group(rng, widths, which), Ws)
    np.testing.assert_allclose(B.end_to_end(moved), X, atol=1e-12 * np.prod([norm([W]) for W in Ws]))
    # dR(ξ) = Σ Re⟨ξ_p, μ_p⟩, by central differences along the one-parameter group
    xis = [generator(rng, d, which) for d in widths[1:-1]]
    hermitian = [xi + xi.conj().T for xi in xis]
    step = 1e-5
    sides = [B.regularizer(B.act([scipy.linalg.expm(s * xi) for xi in hermitian], Ws)) for s in (step, -step)]
    expected = sum(np.sum((xi.conj() * mu).real) for xi, mu in zip(hermitian, B.moment_map(Ws), strict=True))
    np.testing.assert_allclose((sides[0] - sides[1]) / (2 * step), expected, rtol=1e-6, atol=1e-6 * norm(Ws) ** 2)


@given(seeds(), st.lists(st.integers(1, 5), min_size=3, max_size=5), field())
def test_the_moment_map_turns_with_the_compact_group(seed, widths, which):
    rng, Ws = np.random.default_rng(seed), chain(seed, widths, which)
    ks = [unitary(rng, d, which) for d in widths[1:-1]]
    for k, mu, nu in zip(ks, B.moment_map(Ws), B.moment_map(B.act(ks, Ws)), strict=True):
        np.testing.assert_allclose(nu, k @ mu @ k.conj().T, atol=1e-13 * norm(Ws) ** 2)


@given(seeds(), st.lists(st.integers(1, 5), min_size=3, max_size=5), field())
def test_the_action_is_what_it_says(seed, widths, which):
    rng, Ws, action = np.random.default_rng(seed), [jnp.asarray(W) for W in chain(seed, widths, which)], B.ChainAction()
    xi = [jnp.asarray(generator(rng, d, which)) for d in widths[1:-1]]
    V = [jnp.asarray(W) for W in chain(seed + 1, widths, which)]
    size = norm(Ws) * (1 + norm(V)) * (1 + norm(xi))
    # L is the derivative of the action, and L* its adjoint
    step = 1e-6
    sides = [B.act([scipy.linalg.expm(s * np.asarray(x)) for x in xi], Ws) for s in (step, -step)]
    for p, moved in enumerate(action.infinitesimal(Ws, xi)):
        np.testing.assert_allclose((sides[0][p] - sides[1][p]) / (2 * step), moved, atol=1e-8 * size)
    np.testing.assert_allclose(
        fb.trees.dot(action.infinitesimal(Ws, xi), V), fb.trees.dot(xi, action.adjoint(Ws, V)), atol=1e-12 * size
    )
    for computed, mu in zip(action.moment_map(Ws), B.moment_map(Ws), strict=True):
        np.testing.assert_allclose(computed, mu, atol=1e-13 * size)
    hermitian = action.hermitian(xi)
    for V, W in zip(
        action.exponential(hermitian, Ws),
        B.act([scipy.linalg.expm(np.asarray(x)) for x in hermitian], Ws),
        strict=True,
    ):
        np.testing.assert_allclose(V, W, atol=1e-10 * size * np.exp(2 * norm(hermitian)))


def test_gradients_turn_against_the_group():
    """grad_p(g·W) = g_p^{−*} grad_p(W) g_{p−1}^*: what transports the gradients that an optimiser has gathered."""
    widths = (4, 3, 2, 5)
    rng, Ws = np.random.default_rng(0), chain(0, widths)
    gs = group(rng, widths, "real")
    target = rng.normal(size=(5, 4))
    gradient = jax.grad(lambda Ws: jnp.sum((B.end_to_end(Ws) - target) ** 4))
    padded = [np.eye(4), *gs, np.eye(5)]
    moved = gradient([jnp.asarray(W) for W in B.act(gs, Ws)])
    for p, D in enumerate(gradient([jnp.asarray(W) for W in Ws])):
        expected = np.linalg.solve(padded[p + 1].T, np.asarray(D)) @ padded[p].T
        np.testing.assert_allclose(moved[p], expected, rtol=1e-11, atol=1e-11 * np.linalg.norm(D))


@pytest.mark.parametrize("which", ["real", "complex"])
def test_the_normal_vectors_of_a_fibre_telescope(which):
    # n_N ⋯ n_1 = L (X* L)^{N−1}, on which the inequality behind the uniform rate rests
    for seed, widths in enumerate([(3, 3, 3), (4, 3, 5, 2), (2, 3, 3, 4, 3)]):
        Ws = [jnp.asarray(W) for W in chain(seed, widths, which)]
        normal = [W + v for W, v in zip(Ws, B.fibre_velocity(Ws), strict=True)]
        L, X = np.asarray(B.dual_multiplier(Ws)), np.asarray(B.end_to_end(Ws))
        expected = L @ np.linalg.matrix_power(X.conj().T @ L, len(Ws) - 1)
        np.testing.assert_allclose(B.end_to_end(normal), expected, atol=1e-12 * np.linalg.norm(expected))


@given(seeds(), st.lists(st.integers(1, 6), min_size=3, max_size=6), field(), st.sampled_from([0.5, 1, 2, 4]))
def test_no_chain_is_shorter_than_the_minimum_on_its_fibre(seed, widths, which, q):
    Ws = chain(seed, widths, which)
    X, depth = B.end_to_end(Ws), len(Ws)
    assert B.regularizer(Ws) >= B.minimum_on_fibre(X, depth) * (1 - 1e-12)
    assert B.excess(Ws) >= -1e-12 * norm(Ws) ** 2
    # the whole class of principles: Σ‖W_p‖_{S_q}^q ≥ N Σ σ^{q/N}
    values = np.linalg.svd(X, compute_uv=False)[: min(widths)]  # the others are rounding, and σ^{q/N} is steep at zero
    lengths = sum(np.sum(np.linalg.svd(W, compute_uv=False) ** q) for W in Ws)
    assert lengths >= depth * np.sum(values ** (q / depth)) * (1 - 1e-12)


def test_the_nuclear_norm_and_the_quasi_norms():
    X = np.random.default_rng(0).normal(size=(4, 6))
    values = np.linalg.svd(X, compute_uv=False)
    np.testing.assert_allclose(B.minimum_on_fibre(X, 2), np.linalg.norm(X, "nuc"), rtol=1e-14)
    np.testing.assert_allclose(B.minimum_on_fibre(X, 1), np.linalg.norm(X) ** 2 / 2, rtol=1e-14)
    np.testing.assert_allclose(B.minimum_on_fibre(X, 5), 2.5 * np.sum(values**0.4), rtol=1e-14)
    # not convex from N = 3 on: the mean of two matrices of rank one costs more than they do
    ends = [np.diag([1.0, 0.0]), np.diag([0.0, 1.0])]
    assert B.minimum_on_fibre(sum(ends) / 2, 3) > 1.2 * max(B.minimum_on_fibre(E, 3) for E in ends)
    assert B.minimum_on_fibre(sum(ends) / 2, 2) == pytest.approx(1.0)


def test_rounding_does_not_count_in_the_minimum():
    # Rank 2 behind ten layers of width 6: noise of 1e-16 would be worth 1e-3 for each singular value.
    Ws = chain(0, (6,) * 11, spread=0)
    rng = np.random.default_rng(1)
    Ws[4] = rng.normal(size=(6, 2)) @ rng.normal(size=(2, 6)) / 3
    X = B.end_to_end(Ws)
    mpmath.mp.dps = 60
    product = mpmath.eye(6)
    for W in Ws:
        exact = mpmath.matrix(W.tolist())
        product = exact * product
    exact_values = sorted((float(s) for s in mpmath.svd_r(product, compute_uv=False)), reverse=True)[:2]
    expected = norm(Ws) ** 2 / 2 - 5 * sum(s**0.2 for s in exact_values)
    assert B.orbit(Ws).rank == 2
    np.testing.assert_allclose(B.excess(Ws), expected, rtol=1e-12)
    everything = norm(Ws) ** 2 / 2 - 5 * np.sum(np.linalg.svd(X, compute_uv=False) ** 0.2)
    assert everything < expected - 1e-3


@given(seeds(), st.lists(st.integers(2, 12), min_size=3, max_size=8), st.integers(0, 20), st.integers(1, 12))
def test_ranks_of_products_are_found(seed, widths, where, rank):
    Ws, rng = chain(seed, widths, spread=1.0), np.random.default_rng(seed)
    p, rank = where % len(Ws), min(rank, *widths)
    m, n = Ws[p].shape
    Ws[p] = rng.normal(size=(m, rank)) @ rng.normal(size=(rank, n)) / np.sqrt(n)
    found = B.orbit(Ws)
    assert found.rank == rank
    assert found.ranks == tuple(rank if q == p else min(W.shape) for q, W in enumerate(Ws))
    assert found.closed == all(r == rank for r in found.ranks)


def jacobian_rank(Ws, rank, which):
    """The rank of the differential of (U, V, Q_1 …, λ) ↦ balanced chains, at a random point."""
    widths = [Ws[0].shape[1], *(W.shape[0] for W in Ws)]
    rng, n = np.random.default_rng(5), len(Ws)
    frames = [unitary(rng, d, which)[:, :rank] for d in widths]
    scale = np.sort(rng.uniform(1, 2, rank))[::-1]

    def generators(d):
        units = [np.eye(d)[[i]].T @ np.eye(d)[[j]] for i in range(d) for j in range(d)]
        turns = [E - E.T for E in units]
        return turns + [1j * (E + E.T) for E in units] if which == "complex" else turns

    rows = []
    for p, d in enumerate(widths):
        for A in generators(d):
            tangent = [np.zeros((b, a), complex) for a, b in itertools.pairwise(widths)]
            if p > 0:
                tangent[p - 1] += (A @ frames[p] * scale) @ frames[p - 1].conj().T
            if p < n:
                tangent[p] += (frames[p + 1] * scale) @ (A @ frames[p]).conj().T
            rows.append(np.concatenate([T.ravel() for T in tangent]))
    for i in range(rank):
        unit = np.eye(rank)[i]
        rows.append(
            np.concatenate([((frames[p + 1] * unit) @ frames[p].conj().T).ravel().astype(complex) for p in range(n)])
        )
    rows = np.stack(rows)
    return np.linalg.matrix_rank(np.concatenate([rows.real, rows.imag], axis=1), tol=1e-9)


@pytest.mark.parametrize("which", ["real", "complex"])
@pytest.mark.parametrize(("widths", "rank"), [((3, 3, 3, 3), 3), ((4, 3, 5), 2), ((2, 4, 3, 5), 2), ((3, 2, 2, 4), 1)])
def test_the_dimension_of_the_balanced_stratum(widths, rank, which):
    rng = np.random.default_rng(2)
    ends = [unitary(rng, widths[-1], which)[:, :rank], unitary(rng, widths[0], which)[:, :rank]]
    Ws = B.factor(ends[0] * np.linspace(2, 1, rank) @ ends[1].conj().T, widths)
    assert B.orbit(Ws).closed
    assert B.orbit(Ws).dimension == jacobian_rank(Ws, rank, which)


def test_the_dimension_for_square_matrices_is_the_papers():
    for d, depth in itertools.product((1, 2, 3, 4), (2, 3, 5)):
        Ws = B.factor(np.diag(np.arange(1.0, d + 1)), (d,) * (depth + 1))
        assert B.orbit(Ws).dimension == d**2 + (depth - 1) * d * (d - 1) // 2


def test_the_rank_pattern_tells_orbits_apart():
    e = np.eye(2)
    through, past = [e, np.diag([1.0, 0.0]), np.diag([1.0, 0.0])], [e, np.diag([1.0, 0.0]), np.diag([0.0, 1.0])]
    assert B.rank_pattern(through).tolist() == [[2, 1, 1], [0, 1, 1], [0, 0, 1]]
    assert B.rank_pattern(past).tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert B.orbit(past).rank == 0
    assert not B.orbit(past).closed


@given(seeds(), closed_widths(), field(), st.lists(st.floats(0.1, 10), min_size=5, max_size=5))
def test_weights_move_the_minimum_as_they_should(seed, widths, which, weights):
    Ws = chain(seed, widths, which)
    weights, X = weights[: len(Ws)], B.end_to_end(Ws)
    least = B.minimum_on_fibre(X, len(Ws), weights=weights)
    np.testing.assert_allclose(least, np.prod(weights) ** (1 / len(Ws)) * B.minimum_on_fibre(X, len(Ws)), rtol=1e-12)
    assert B.regularizer(Ws, weights) >= least * (1 - 1e-12)
    balanced = B.balanced(Ws, weights=weights)
    np.testing.assert_allclose(B.regularizer(balanced, weights), least, rtol=1e-10)
    assert norm(B.imbalance(balanced, weights)) <= 1e-12 * norm(Ws) ** 2 * max(weights) / min(weights)
    np.testing.assert_allclose(B.end_to_end(balanced), X, atol=1e-12 * np.prod([norm([W]) for W in Ws]))


@given(seeds(), closed_widths(), field())
def test_the_distance_certificate(seed, widths, which):
    Ws = chain(seed, widths, which)
    lower, upper = B.distance_bounds(Ws)
    found = distance(Ws, B.balanced(Ws, "nearest"))
    slack = 1e-7 * norm(Ws)  # √ of the rounding of the excess
    assert found >= lower - slack
    if len(Ws) == 2:  # for longer chains the nearest one found need not be the nearest
        assert found <= upper + slack
    # whatever was found, the end of the induced flow is within the bound: see the tests of flows


def test_functions_of_chains_work_in_transformations():
    Ws = [jnp.asarray(W) for W in chain(3, (3, 2, 4))]
    jitted = jax.jit(lambda Ws: (B.end_to_end(Ws), B.imbalance(Ws), B.regularizer(Ws), B.excess(Ws)))(Ws)
    plain = B.end_to_end(Ws), B.imbalance(Ws), B.regularizer(Ws), B.excess(Ws)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), jitted, plain)
    gradient = jax.grad(B.regularizer)(Ws)
    jax.tree.map(np.testing.assert_allclose, gradient, Ws)
    assert all(isinstance(G, jax.Array) for G in B.imbalance(Ws))
    assert all(isinstance(G, np.ndarray) for G in B.imbalance([np.asarray(W) for W in Ws]))


def test_the_parameters_of_a_deep_linear_network_are_a_chain():
    apply, params = fb.networks.deep_linear((4, 3, 3, 2), key=jax.random.key(0), balanced=True)
    X = B.end_to_end(params)
    x = jnp.arange(4.0)
    np.testing.assert_allclose(apply(params, x), X @ x, rtol=1e-12)
    assert norm(B.imbalance(params)) < 1e-14
    assert B.excess(params) < 1e-13
    assert B.orbit(params).closed


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        ([np.eye(2)], ShapeError, "two or more"),
        (np.eye(2), ShapeError, "the chain is ndarray"),
        ([np.eye(2), np.eye(3)], ShapeError, "2 columns"),
        ([np.eye(2), np.ones(2)], ShapeError, "W_2 has shape"),
        ([np.eye(2), np.zeros((0, 2))], ShapeError, "at least one row"),
        ([np.eye(2), [["a", "b"]]], ShapeError, "matrix of numbers"),
        ([np.eye(2), np.array([[1.0, np.nan]])], NonFiniteDataError, "W_2 holds 1 entries.*row 0, column 1"),
        ([np.eye(2), np.array([[np.inf, 1j]])], NonFiniteDataError, "W_2"),
    ],
)
@pytest.mark.parametrize("function", [B.end_to_end, B.moment_map, B.excess, B.orbit, B.balanced, B.kempf_ness])
def test_wrong_chains_are_named(bad, error, words, function):
    with pytest.raises(error, match=words):
        function(bad)


def test_wrong_arguments_are_named():
    Ws = chain(0, (2, 2, 2))
    with pytest.raises(ShapeError, match="one for each hidden layer"):
        B.act([np.eye(2), np.eye(2)], Ws)
    with pytest.raises(ParameterError, match="2 positive numbers"):
        B.regularizer(Ws, [1.0, -1.0])
    with pytest.raises(ParameterError, match="positive integer"):
        B.minimum_on_fibre(np.eye(2), 0)
