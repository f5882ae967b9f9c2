"""Coordinates and the disparity matrix: closed forms, the chain rule, adjoints, and the neural tangent kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import fibration as fb
from canonical_networks import random_problem, shallow_relu, spread
from fibration.canonical import Basis, coordinates, disparity, disparity_operator, quadrature
from fibration.errors import ApplyError, NonFiniteDataError, ParameterError, ResolutionWarning, ShapeError


def unit_box(d):
    return [(0, 1)] * d


@pytest.mark.parametrize("seed", range(4))
def test_shallow_relu_is_exact(seed):
    """Gauss between the kinks against the closed form: spec 001, 4.1 asks 5e-16 for θ and 4e-15 for H."""
    apply, params = spread(12, activation="relu", scale=3.0, seed=seed)
    basis = Basis([(0, 1)], 12)
    theta, rows = shallow_relu(params, basis.indices)
    np.testing.assert_allclose(coordinates(apply, params, basis)[:, 0], theta, atol=1e-14)
    np.testing.assert_allclose(disparity(apply, params, basis), rows, atol=2e-14)


def test_deep_relu_is_cut_at_all_its_kinks():
    apply, params = fb.networks.mlp((1, 10, 10, 1), "relu", key=jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)
    basis = Basis([(-1, 1)], 10)
    cuts = fb.canonical.breakpoints(apply, params, basis)
    assert len(cuts) > 3
    theta = coordinates(apply, params, basis)
    # Trapezoids on a million points see kinks to O(h²).
    x = np.linspace(-1, 1, 1_000_001)
    f = np.asarray(jax.vmap(lambda v: apply(params, v[None]))(jnp.asarray(x)))[:, 0]
    modes = np.sqrt(2) * np.cos(np.pi * 3 * (x + 1) / 2)
    np.testing.assert_allclose(theta[3, 0], np.trapezoid(f * modes, x) / 2, atol=1e-10)


def test_ignoring_kinks_costs_h_an_order_more():
    apply, params = spread(12, activation="relu", scale=3.0)
    basis = Basis([(0, 1)], 12)
    theta, rows = shallow_relu(params, basis.indices)
    rule = quadrature(basis, "midpoint", nodes=4096)
    assert np.abs(coordinates(apply, params, basis, rule=rule)[:, 0] - theta).max() < 1e-6
    error = np.abs(disparity(apply, params, basis, rule=rule) - rows).max()
    assert 1e-7 < error < 1e-3


CASES = [(1, 1, "squared", 40, "box"), (2, 3, "softmax", 6, "box"), (3, 2, "squared", 4, "hc")]


@pytest.mark.parametrize(("d", "q", "loss", "degree", "index_set"), CASES)
def test_chain_rule(d, q, loss, degree, index_set):
    """∇_w 𝒬(θ(w)) = H ∇_θ𝒬 to rounding; the network's own cost differs by the modes left out."""
    apply, params = spread(9, d, q, scale=3.0)
    basis = Basis(unit_box(d), degree, index_set=index_set)
    problem = random_problem(apply, params, d, 15, q, loss=fb.CrossEntropy() if loss == "softmax" else None)
    rule = quadrature(basis)

    def projected(p):
        return fb.canonical.projected_cost(problem, coordinates(apply, p, basis, rule=rule), basis)

    direct = ravel_pytree(jax.grad(projected)(params))[0]
    theta = coordinates(apply, params, basis, rule=rule)
    gradient = fb.canonical.projected_gradient(problem, theta, basis)
    H = disparity(apply, params, basis, rule=rule)
    np.testing.assert_allclose(H @ gradient.reshape(-1), direct, atol=3e-15 * np.abs(direct).max() * 10)
    mismatch = np.abs(ravel_pytree(problem.gradient(params))[0] - direct).max()
    assert mismatch > 1e-9  # what the truncation leaves


def test_the_truncation_vanishes_with_more_modes():
    apply, params = spread(9, scale=3.0)
    problem = random_problem(apply, params, 1, 12, 1)
    misses = []
    for degree in (7, 31, 127):
        basis = Basis([(0, 1)], degree)
        theta = coordinates(apply, params, basis)
        H = disparity(apply, params, basis)
        found = H @ fb.canonical.projected_gradient(problem, theta, basis).reshape(-1)
        misses.append(np.abs(found - ravel_pytree(problem.gradient(params))[0]).max())
    assert misses[0] > 3 * misses[1] > 9 * misses[2]


def test_tail_energy_falls_like_the_boundary_says():
    """Parseval: K⁻³ in the cosine basis, K⁻¹ in the Fourier basis, for a function that is not periodic (4.2)."""
    apply, params = spread(6, scale=3.0)
    slopes = {}
    for kind in ("cosine", "fourier"):
        basis = Basis([(0, 1)], 256, kind)
        rule = quadrature(basis, "gauss")
        theta = coordinates(apply, params, basis, rule=rule)
        whole = float(
            np.sum(rule.weights[:, None] * np.asarray(jax.vmap(lambda x: apply(params, x))(rule.samples)) ** 2)
        )
        tails = whole - np.cumsum(np.asarray(basis.energy(theta)))
        slopes[kind] = np.log2(tails[128] / tails[32]) / 2
    assert slopes["cosine"] == pytest.approx(-3, abs=0.1)
    assert slopes["fourier"] == pytest.approx(-1, abs=0.1)


@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from(["cosine", "fourier"]), st.integers(0, 10**6))
@settings(max_examples=12)
def test_operator_columns_rows_and_adjoint(d, q, kind, seed):
    apply, params = spread(4, d, q, scale=2.0, seed=seed)
    basis = Basis(unit_box(d), 2, kind, index_set="l1")
    rule = quadrature(basis)
    H = np.asarray(disparity(apply, params, basis, rule=rule))
    operator = disparity_operator(apply, params, basis, rule=rule)
    rng = np.random.default_rng(seed)
    g = jnp.asarray(rng.normal(size=(basis.size, q)))
    vector, unravel = ravel_pytree(params)
    v = rng.normal(size=vector.size)
    image, back = ravel_pytree(operator.mv(g))[0], operator.transpose().mv(unravel(jnp.asarray(v)))
    np.testing.assert_allclose(image, H @ np.asarray(g).reshape(-1), atol=1e-13)
    np.testing.assert_allclose(np.asarray(back).reshape(-1), H.T @ v, atol=1e-13)
    size = np.linalg.norm(image) * np.linalg.norm(v)
    assert abs(np.vdot(image, v) - np.vdot(g, back)) < 1e-14 * size
    forward = jax.jacfwd(lambda w: coordinates(apply, unravel(w), basis, rule=rule))(vector)
    np.testing.assert_allclose(H, forward.reshape(-1, vector.size).T, atol=1e-13)


def test_chunks_do_not_matter(monkeypatch):
    apply, params = spread(5, 2, 2, scale=2.0)
    basis = Basis(unit_box(2), 3)
    whole = disparity(apply, params, basis)
    monkeypatch.setattr("fibration.canonical._disparity._CHUNK", 2**14)
    jax.clear_caches()
    np.testing.assert_allclose(disparity(apply, params, basis), whole, atol=1e-14)


def test_squares_are_the_tangent_kernel_in_the_basis():
    """(HᵀH)_kl = ∬ e_k(x) K(x, x') e_l(x'), and HHᵀ tends to the Fisher matrix (4.2)."""
    apply, params = spread(6, scale=3.0)
    vector, unravel = ravel_pytree(params)
    rows = lambda x: jax.vmap(jax.grad(lambda w, one: apply(unravel(w), one)[0]), (None, 0))(vector, x)  # noqa: E731
    nodes, weights = np.polynomial.legendre.leggauss(300)
    x = (nodes[:, None] + 1) / 2
    J = np.asarray(rows(jnp.asarray(x)))
    fisher = J.T @ (weights[:, None] / 2 * J)
    misses = []
    for degree in (19, 79, 319):
        basis = Basis([(0, 1)], degree)
        H = np.asarray(disparity(apply, params, basis))
        E = np.asarray(basis.evaluate(jnp.asarray(x))) * weights[:, None] / 2
        if degree < 100:
            np.testing.assert_allclose(H.T @ H, E.T @ (J @ J.T) @ E, atol=1e-12)
        misses.append(np.linalg.norm(H @ H.T - fisher) / np.linalg.norm(fisher))
    assert misses[0] < 1e-3
    assert misses[0] > 20 * misses[1] > 400 * misses[2]


def test_the_differential_is_synthesised_from_h():
    """‖J − EHᵀ‖/‖J‖ falls as K⁻², and σ_min(E) σ_min(H) is a poor bound of σ_min(EHᵀ) (4.2: 2.7e-3 to 1.2e-5)."""
    apply, params = spread(6, scale=3.0)
    problem = random_problem(apply, params, 1, 8, 1)
    J = np.asarray(fb.tangent.jacobian(problem, params))
    misses = []
    for size in (20, 80, 320):
        basis = Basis([(0, 1)], size - 1)
        product = np.asarray(basis.evaluate(problem.inputs) @ disparity(apply, params, basis).T)
        misses.append(np.linalg.norm(J - product) / np.linalg.norm(J))
    assert misses[0] < 1e-2
    assert misses[2] < 4e-5
    assert misses[0] > 8 * misses[1] > 64 * misses[2]

    basis = Basis([(0, 1)], 15)
    E, H = np.asarray(basis.evaluate(problem.inputs)), np.asarray(disparity(apply, params, basis))
    least = [np.linalg.svd(matrix, compute_uv=False)[-1] for matrix in (E @ H.T, E, H)]
    assert least[0] > 10 * least[1] * least[2]


def test_the_spectrum_by_products_alone():
    """Spec 001, 4.9: 1,801 parameters and 100 modes; Lanczos to 8.9e-16, Hutch++ to 1.5e-4, Hutchinson to 5 %."""
    rng = np.random.default_rng(0)
    width, basis = 600, Basis([(0, 1)], 99)
    params = {"weight": rng.normal(size=(width, 1)), "bias": rng.normal(size=width)}
    params |= {"out": rng.normal(size=(1, width)) / np.sqrt(width), "offset": np.zeros(1)}
    apply = lambda p, x: p["out"] @ jnp.tanh(p["weight"] @ x + p["bias"]) + p["offset"]  # noqa: E731
    H = np.asarray(disparity(apply, params, basis))
    sigma = np.linalg.svd(H, compute_uv=False)

    operator = disparity_operator(apply, params, basis)
    unravel = ravel_pytree(params)[1]
    forth = jax.jit(lambda g: ravel_pytree(operator.mv(g.reshape(-1, 1)))[0])
    back = jax.jit(lambda v: operator.transpose().mv(unravel(v)).reshape(-1))
    products = scipy.sparse.linalg.LinearOperator(H.shape, matvec=forth, rmatvec=back, dtype=float)
    top = scipy.sparse.linalg.svds(products, k=4, return_singular_vectors=False, random_state=0)
    np.testing.assert_allclose(top[::-1], sigma[:4], rtol=1e-12)

    gram = lambda vectors: products.rmatmat(products.matmat(vectors))  # noqa: E731
    trace, signs = np.sum(sigma**2), rng.choice([-1.0, 1.0], size=(100, 30))
    hutchinson = np.sum(signs * gram(signs)) / 30
    # Ten products find the range, ten its trace, ten the trace of what is left (Meyer et al., 2021).
    Q, left = np.linalg.qr(gram(signs[:, :10]))[0], signs[:, 10:20]
    left = left - Q @ (Q.T @ left)
    hutch = np.trace(Q.T @ gram(Q)) + np.sum(left * gram(left)) / 10
    assert abs(hutch - trace) < 1e-3 * trace < abs(hutchinson - trace)

    report = fb.canonical.rank_report(apply, params, basis).canonical
    assert report.stable_rank == pytest.approx(hutch / top[-1] ** 2, rel=1e-3)
    assert report.entropy_rank == pytest.approx(np.exp(scipy.stats.entropy(sigma**2 / trace)), rel=1e-6)


@pytest.mark.slow
def test_six_dimensions_by_a_lattice_beat_monte_carlo():
    """880 modes of a network of cosines, whose coefficients are known (4.1: 8.9e-6 against 3.6e-3)."""
    rng = np.random.default_rng(0)
    basis = Basis(unit_box(6), 4, index_set="hc")
    weights, phases = rng.normal(size=(8, 6)), rng.uniform(0, 2 * np.pi, size=8)
    apply = lambda p, x: jnp.cos(p["weight"] @ x + p["bias"]).sum()  # noqa: E731
    params = {"weight": jnp.asarray(weights), "bias": jnp.asarray(phases)}
    # ∫₀¹ e^{iωu} √2 cos πku du by axis, in closed form.
    k = np.arange(5)
    omega = weights[..., None]
    plus, minus = ((np.exp(1j * (omega + s * np.pi * k)) - 1) / (1j * (omega + s * np.pi * k)) for s in (1, -1))
    table = (plus + minus) / 2 * np.where(k == 0, 1, np.sqrt(2))
    product = np.prod([table[:, axis, basis.indices[:, axis]] for axis in range(6)], axis=0)
    exact = (np.exp(1j * phases)[:, None] * product).real.sum(axis=0)
    rule = quadrature(basis, nodes=524_288)
    error = np.sqrt(np.mean((np.asarray(coordinates(apply, params, basis, rule=rule))[:, 0] - exact) ** 2))
    points = rng.uniform(size=(rule.size, 6))
    values = np.asarray(jax.vmap(lambda x: apply(params, x))(jnp.asarray(points)))
    carlo = np.sqrt(np.mean((np.asarray(basis.evaluate(points)).T @ values / rule.size - exact) ** 2))
    assert error < 1e-5
    assert carlo > 50 * error


def test_resolution_is_said():
    steep = lambda w, x: jnp.tanh(w * (x - 0.4))  # noqa: E731
    with pytest.warns(ResolutionWarning, match="under-resolved"):
        fb.canonical.resolve(steep, jnp.array(3e4), Basis([(0, 1)], 3), most=500)
    with pytest.warns(ResolutionWarning, match="to 2048 nodes|to 1[0-9]{3} nodes"):  # it ends
        fb.canonical.resolve(steep, jnp.array(3e6), Basis([(0, 1)], 3))
    with pytest.warns(ResolutionWarning) as said:
        coordinates(lambda w, x: w * x, jnp.array(1.0), Basis([(0, 1)], 3, "fourier"))
    assert any('Pass kind="cosine"' in str(warning.message) for warning in said)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda b: coordinates(3, jnp.ones(1), b), ApplyError, "int"),
        (lambda b: coordinates(lambda w, x: w @ jnp.ones((1, 3)) @ x, jnp.ones(1), b), ApplyError, "one sample"),
        (lambda b: coordinates(lambda w, x: w, {}, b), ParameterError, "no floating-point"),
        (
            lambda b: coordinates(lambda w, x: w, jnp.ones(1), b, rule=quadrature(Basis((0, 1), 2))),
            ParameterError,
            "another basis",
        ),
        (lambda b: fb.canonical.projected_cost(spread_problem(), jnp.ones(7), b), ShapeError, "one row for each mode"),
    ],
)
def test_bad_input_is_named(call, error, match):
    with pytest.raises(error, match=match):
        call(Basis([(0, 1)], 3))


def spread_problem():
    apply, params = spread(4)
    return random_problem(apply, params, 1, 5, 1)


def test_a_relu_network_of_zeros_has_no_kinks():
    """Its pre-activations are zero everywhere and switch nowhere."""
    apply, params = spread(5, activation="relu")
    zero = jax.tree.map(jnp.zeros_like, params)
    assert len(fb.canonical.breakpoints(apply, zero, Basis([(0, 1)], 3))) == 0
    np.testing.assert_array_equal(coordinates(apply, zero, Basis([(0, 1)], 3)), 0)


def test_nothing_that_is_not_a_number_comes_back_silently():
    with np.errstate(all="ignore"), pytest.raises(NonFiniteDataError, match="coordinates hold"):
        coordinates(lambda w, x: jnp.log(w - x), jnp.array(0.5), Basis([(0, 1)], 3))
