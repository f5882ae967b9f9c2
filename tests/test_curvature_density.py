import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import fibration as fb
from fibration.curvature import spectral_density
from fibration.errors import NonFiniteCurvatureError, ParameterError, StepSizeError
from problems import digits_problem, quadratic, random_spd


def eigenvalues(problem, params):
    flat, unravel = ravel_pytree(params)
    return np.linalg.eigvalsh(jax.hessian(lambda v: problem.cost(unravel(v)))(flat))


def test_sign_probes_see_a_diagonal_hessian_exactly():
    values = np.array([0.0, 0.5, 1.0, 2.5, 7.0])
    found = spectral_density(quadratic(np.diag(values)), np.ones(5), probes=3, products=10)
    np.testing.assert_allclose(found.nodes, np.tile(values, (3, 1)), atol=1e-12)
    np.testing.assert_allclose(found.weights, np.full((3, 5), 1 / 15), rtol=1e-9)
    # Five distinct values of a hundred: the space is exhausted after five products, and the rest has no weight.
    found = spectral_density(quadratic(np.diag(np.repeat(values, 20))), np.ones(100), probes=2, products=30)
    for power in range(9):
        moment = np.sum(found.weights * found.nodes**power)
        np.testing.assert_allclose(moment, np.mean(values**power), rtol=1e-10)


def test_moments_and_histogram_of_a_network():
    problem, params = digits_problem(samples=30, hidden=4)
    values = eigenvalues(problem, params)
    found = spectral_density(problem, params, probes=40, products=40)
    np.testing.assert_allclose(np.sum(found.weights), 1.0, rtol=1e-12)
    np.testing.assert_allclose(np.trapezoid(found.density, found.grid), 1.0, rtol=1e-4)
    for power in range(1, 5):
        each = 40 * np.sum(found.weights * found.nodes**power, axis=1)
        standard_error = np.std(each, ddof=1) / np.sqrt(40)
        assert abs(np.mean(each) - np.mean(values**power)) < 4 * standard_error
    # The cumulative distribution, smoothed alike.
    width = float(found.broadening)
    exact = np.mean(jax.scipy.stats.norm.cdf(found.grid[:, None], values, width), axis=1)
    steps = jax.scipy.stats.norm.cdf(found.grid[:, None], found.nodes.ravel(), width)
    ours = steps @ found.weights.ravel()
    assert np.max(np.abs(exact - ours)) < 0.03
    assert found.nodes.min() >= values[0] - 1e-9
    assert found.nodes.max() <= values[-1] + 1e-9


def test_a_grid_and_a_broadening_of_ones_own():
    problem = quadratic(np.diag([1.0, 3.0]))
    grid = np.linspace(0, 4, 9)
    found = spectral_density(problem, np.ones(2), grid=grid, broadening=0.5, probes=1)
    expected = 0.5 * (jax.scipy.stats.norm.pdf(grid, 1, 0.5) + jax.scipy.stats.norm.pdf(grid, 3, 0.5))
    np.testing.assert_allclose(found.density, expected, rtol=1e-9)
    np.testing.assert_array_equal(found.grid, grid)


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_one_eigenvalue_has_a_density_too(value):
    found = spectral_density(quadratic(value * np.eye(30)), np.ones(30))
    np.testing.assert_allclose(np.sum(found.weights * found.nodes), value, atol=1e-12)
    np.testing.assert_allclose(np.trapezoid(found.density, found.grid), 1.0, rtol=1e-4)


def test_it_works_inside_jit_and_in_single_precision():
    problem = quadratic(random_spd(0, np.linspace(0, 1, 20)))
    inside = jax.jit(lambda w: spectral_density(problem, w, products=20).nodes)(jnp.ones(20))
    np.testing.assert_allclose(inside, spectral_density(problem, jnp.ones(20), products=20).nodes, atol=1e-10)
    single = spectral_density(problem, jnp.ones(20, jnp.float32), products=20)
    assert single.nodes.dtype == jnp.float32
    assert np.all((single.nodes > -1e-5) & (single.nodes < 1 + 1e-5))


BENT = fb.Problem(lambda w, x: jnp.sum(jnp.abs(w) ** 1.5) * x, np.ones(1), np.ones(1))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"probes": 0}, StepSizeError),
        ({"products": 0}, StepSizeError),
        ({"broadening": 0.0}, StepSizeError),
        ({"params": np.ones(3) * 1j}, ParameterError),
        ({"params": np.zeros(3)}, NonFiniteCurvatureError),
    ],
)
def test_bad_calls_are_named(options, error):
    with pytest.raises(error):
        spectral_density(BENT, **({"params": np.ones(3)} | options))
