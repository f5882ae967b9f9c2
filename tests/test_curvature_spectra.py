import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fibration as fb
from fibration.curvature import extreme_eigenvalues
from problems import quadratic, random_spd
from spectra import check_pairs, dense_hessian


def _form(w, x):
    return jnp.append(0.5 * (w @ x @ w), 1.0)  # cost ½ (1 + ½ wᵀHw)² up to a constant: its Hessian at 0 is H


def indefinite(matrix):
    """A problem whose Hessian at zero is any symmetric matrix."""
    return fb.Problem(_form, np.asarray(matrix)[None], np.array([[-1.0, 0.0]]))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from([(2, 2), (90, 3)]), st.floats(-6, 3))
def test_both_ends_of_random_indefinite_spectra(seed, size, log_scale):
    n, k = size
    values = np.random.default_rng(seed).normal(size=n) * 10.0**log_scale
    matrix = random_spd(seed, values)
    found = extreme_eigenvalues(indefinite(matrix), jnp.zeros(n), k, tolerance=1e-9, max_products=3000)
    assert bool(found.converged)
    check_pairs(found, matrix, k, "both", slack=1e-12)
    values, scale = np.sort(values), np.max(np.abs(values))
    np.testing.assert_allclose(found.smallest, values[:k], atol=1e-9 * scale)
    np.testing.assert_allclose(found.largest, values[::-1][:k], atol=1e-9 * scale)


@pytest.mark.parametrize(
    ("values", "k"),
    [
        (np.array([5.0]), 1),
        (np.zeros(7), 2),
        (np.zeros(300), 3),
        (np.ones(300) * 2.5, 3),
        (np.repeat([0.0, 1.0, 4.0], 100), 3),  # each eigenvalue many times
        (np.repeat([1.0, 2.0, 3.0, 4.0, 4.5], [1, 1, 295, 1, 2]), 3),
        (np.concatenate([np.zeros(295), [1.0, 2.0, 3.0, 3.0, 3.0]]), 3),  # of rank 5
        (np.concatenate([1e-9 * np.arange(297), [0.5, 1.0, 1 + 1e-5]]), 3),  # two nearly equal above a cluster
    ],
)
def test_repeated_clustered_and_vanishing_eigenvalues(values, k):
    problem = quadratic(random_spd(1, values))
    found = extreme_eigenvalues(problem, jnp.ones(len(values)), k, tolerance=1e-8, max_products=2000)
    assert bool(found.converged)
    scale = np.max(values)
    np.testing.assert_allclose(found.smallest, np.sort(values)[:k], atol=1e-7 * scale + 1e-14)
    np.testing.assert_allclose(found.largest, np.sort(values)[::-1][:k], atol=1e-7 * scale + 1e-14)


def test_a_spectrum_without_gaps_needs_restarts():
    values = np.linspace(-1.0, 1.0, 600)
    matrix = random_spd(5, values)
    found = extreme_eigenvalues(indefinite(matrix), jnp.zeros(600), tolerance=1e-4, krylov_dimension=20)
    assert 20 < int(found.products) <= 400
    assert bool(found.converged)
    np.testing.assert_allclose([found.smallest[0], found.largest[0]], [-1, 1], atol=1e-4)
    check_pairs(found, matrix, 1, "both", slack=1e-12)


def test_an_exhausted_budget_is_said_and_the_residual_still_true():
    values = np.linspace(-1.0, 1.0, 600)
    matrix = random_spd(5, values)
    for budget in (2, 37):
        found = extreme_eigenvalues(indefinite(matrix), jnp.zeros(600), tolerance=1e-6, max_products=budget)
        assert not bool(found.converged)
        assert int(found.products) == budget
        assert np.max(found.residuals) > 1e-6
        check_pairs(found, matrix, 1, "both", slack=1e-12)


def test_an_exact_eigenvector_as_start_does_not_hide_the_others():
    values = np.concatenate([np.linspace(0, 1, 200), [5.0]])
    problem = quadratic(np.diag(values))
    start = jnp.zeros(201).at[100].set(1.0)
    found = extreme_eigenvalues(problem, jnp.zeros(201), start=start)
    np.testing.assert_allclose(found.largest, [5.0], rtol=1e-6)


def test_it_works_inside_transformations():
    matrix = random_spd(2, np.linspace(-1, 3, 50))
    problem = indefinite(matrix)

    @jax.jit
    def sharpness(scale):
        return extreme_eigenvalues(problem, scale * jnp.ones(50), tolerance=1e-8).largest[0]

    expected = [np.linalg.eigvalsh(dense_hessian(problem, s * jnp.ones(50)))[-1] for s in (0.0, 0.1)]
    np.testing.assert_allclose(jax.lax.map(sharpness, jnp.array([0.0, 0.1])), expected, rtol=1e-7)


class Rotation(fb.flows.AbstractFlow):
    """θ' = Mθ + a kick by θ³, whose linearisation is not symmetric; it stretches with time."""

    matrix: jax.Array

    def __call__(self, problem, params, time=0.0):
        return (1 + time) * (self.matrix @ params) - params**3


def test_a_flows_logarithmic_norm():
    matrix = np.random.default_rng(0).normal(size=(30, 30))
    params = jnp.asarray(np.random.default_rng(1).normal(size=30))
    problem = quadratic(np.eye(30))
    for time in (0.0, 0.5):
        jacobian = (1 + time) * matrix - np.diag(3 * params**2)
        expected = np.linalg.eigvalsh(-0.5 * (jacobian + jacobian.T))
        found = extreme_eigenvalues(problem, params, 2, flow=Rotation(jnp.asarray(matrix)), time=time, tolerance=1e-10)
        np.testing.assert_allclose(found.smallest, expected[:2], rtol=1e-8)
        np.testing.assert_allclose(found.largest, expected[::-1][:2], rtol=1e-8)
        assert int(found.products) % 2 == 0
    # Two solutions part no faster than the logarithmic norm says: at a point, d|e|/dt ≤ −λ_min |e|.
    e = np.random.default_rng(2).normal(size=(30, 100))
    assert np.all(np.sum(e * (jacobian @ e), axis=0) <= -float(found.smallest[0]) * np.sum(e**2, axis=0) * (1 + 1e-8))
