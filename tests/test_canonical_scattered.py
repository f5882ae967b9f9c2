"""Coordinates from scattered samples: the two methods against the basis itself, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import fibration as fb
from fibration.canonical._scattered import transforms
from fibration.errors import MemoryBudgetError, MissingExtraError, ParameterError, ShapeError, UnknownNameError
from optional import optional

BASES = [
    ((-1, 3), 7, "cosine", "box"),
    ((0, 1), 5, "fourier", "box"),
    ([(0, 1), (-2, 1)], 6, "cosine", "hc"),
    ([(0, 1), (0, 2)], 4, "fourier", "l1"),
    ([(0, 1), (0, 2), (1, 5)], 3, "cosine", "ball"),
    ([(0, 1), (0, 2), (1, 5)], 2, "fourier", "hc"),
]


def points(basis, n, seed=0):
    u = np.random.default_rng(seed).uniform(size=(n, basis.dimension))
    u[0], u[1] = 0, 1  # corners too
    return basis.from_unit(jnp.asarray(u))


@pytest.mark.parametrize("case", BASES)
def test_the_transforms_are_the_evaluation_matrix_and_its_transpose(case):
    optional("jax_finufft", "nufft")
    basis = fb.canonical.Basis(*case)
    x = points(basis, 40)
    forward, adjoint = transforms(basis, basis.to_unit(x))
    E = np.asarray(basis.evaluate(x))
    rng = np.random.default_rng(1)
    theta, residual = rng.normal(size=basis.size), rng.normal(size=40)
    np.testing.assert_allclose(forward(theta), E @ theta, atol=1e-11 * np.linalg.norm(theta))
    np.testing.assert_allclose(adjoint(residual), E.T @ residual, atol=1e-11 * np.linalg.norm(residual))


def test_both_methods_find_the_coefficients_of_a_function_in_the_span():
    optional("jax_finufft", "nufft")
    basis = fb.canonical.Basis([(0, 1), (-1, 1)], 8, index_set="l1")
    theta = jax.random.normal(jax.random.key(0), (basis.size, 2))
    x = points(basis, 400)
    values = basis.synthesise(theta, x)
    dense, condition = fb.canonical.fit(basis, x, values, method="dense")
    fast, estimate = fb.canonical.fit(basis, x, values, method="nufft")
    np.testing.assert_allclose(dense, theta, atol=1e-12)
    np.testing.assert_allclose(fast, theta, atol=1e-10)
    sigma = np.linalg.svd(np.asarray(basis.evaluate(x)), compute_uv=False)
    assert condition == pytest.approx(sigma[0] / sigma[-1], rel=1e-9)
    assert 1 <= estimate < 3 * condition


def test_a_function_out_of_the_span_gets_the_least_squares_of_scipy():
    optional("jax_finufft", "nufft")
    basis = fb.canonical.Basis((0, 1), 6)
    x = points(basis, 50)
    values = np.exp(np.asarray(x))
    expected = scipy.linalg.lstsq(np.asarray(basis.evaluate(x)), values)[0]
    for method in ("dense", "nufft"):
        theta, _ = fb.canonical.fit(basis, x, values, method=method)
        np.testing.assert_allclose(theta[:, 0], expected, atol=1e-9)


def test_what_it_refuses(monkeypatch):
    basis = fb.canonical.Basis([(0, 1)] * 4, 2, index_set="l1")
    x = jnp.full((5, 4), 0.5)
    with pytest.raises(ParameterError, match="at most three"):
        fb.canonical.fit(basis, x, jnp.ones(5), method="nufft")
    with pytest.raises(UnknownNameError, match="nufft"):
        fb.canonical.fit(basis, x, jnp.ones(5), method="fft")
    with pytest.raises(ShapeError, match="values"):
        fb.canonical.fit(basis, x, jnp.ones(4))
    with pytest.raises(ShapeError, match="shape"):
        fb.canonical.fit(basis, jnp.ones((5, 3)), jnp.ones(5))
    with pytest.raises(ParameterError, match="out of the box"):
        fb.canonical.fit(basis, x + 1, jnp.ones(5))
    monkeypatch.setattr("fibration.canonical._scattered._BUDGET", 100)
    with pytest.raises(MemoryBudgetError, match="fewer modes"):
        fb.canonical.fit(basis, x, jnp.ones(5))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="nufft"):
        fb.canonical.fit(fb.canonical.Basis((0, 1), 3), jnp.full(5, 0.5), jnp.ones(5), method="nufft")


def test_no_condition_without_enough_samples():
    basis = fb.canonical.Basis((0, 1), 6)
    _, condition = fb.canonical.fit(basis, jnp.linspace(0, 1, 4), jnp.ones(4))
    assert condition == float("inf")
