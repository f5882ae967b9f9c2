import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import fibration as fb
from fibration.curvature import Sharpness, hessian_vector_product, largest_eigenpair
from problems import digits_problem, quadratic, random_spd


def dense_hessian(problem, params):
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.hessian(lambda v: problem.cost(unravel(v)))(flat))


@pytest.mark.parametrize("loss", [None, fb.CrossEntropy()])
def test_products_agree_with_the_dense_hessian(loss):
    problem, params = digits_problem(samples=12, hidden=3, loss=loss)
    hessian = dense_hessian(problem, params)
    vector = fb.trees.random_like(jax.random.key(5), params)
    product = ravel_pytree(hessian_vector_product(problem, params, vector))[0]
    np.testing.assert_allclose(product, hessian @ np.asarray(ravel_pytree(vector)[0]), atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from([1, 2, 12]), st.floats(-6, 3))
def test_largest_eigenvalue_of_random_spectra(seed, n, log_scale):
    values = np.random.default_rng(seed).uniform(0, 10.0**log_scale, n)
    problem = quadratic(random_spd(seed, values))
    pair = largest_eigenpair(problem, jnp.zeros(n), rtol=1e-8)
    np.testing.assert_allclose(pair.value, values.max(), rtol=1e-7)
    vector = np.asarray(pair.vector)
    np.testing.assert_allclose(np.linalg.norm(vector), 1.0, rtol=1e-10)
    product = np.asarray(hessian_vector_product(problem, jnp.zeros(n), pair.vector))
    residual = np.linalg.norm(product - float(pair.value) * vector)
    assert residual <= 1e-7 * values.max()


def test_the_residual_bounds_the_error_and_the_value_is_never_above():
    problem, params = digits_problem(samples=20, hidden=4)
    values = np.linalg.eigvalsh(dense_hessian(problem, params))
    for rtol in (0.3, 0.03, 1e-6):
        pair = largest_eigenpair(problem, params, rtol=rtol, krylov_dimension=3)
        assert float(pair.value) <= values[-1] * (1 + 1e-12)
        assert np.min(np.abs(values - float(pair.value))) <= float(pair.residual) + 1e-12
        assert float(pair.residual) <= rtol * abs(float(pair.value)) * (1 + 1e-9)
    np.testing.assert_allclose(pair.value, values[-1], rtol=1e-9)


def test_it_is_the_largest_and_not_the_largest_in_magnitude():
    # C = ½(w² z)² has an indefinite Hessian at (1, 0.5)… compare with the dense one.
    problem = fb.Problem(lambda p, x: p["w"] * p["z"] * x, np.ones(1), -np.ones(1) * 40)
    params = {"w": jnp.array(0.1), "z": jnp.array(-0.2)}
    values = np.linalg.eigvalsh(dense_hessian(problem, params))
    assert -values[0] > 0.9 * values[-1] > 0
    np.testing.assert_allclose(largest_eigenpair(problem, params, rtol=1e-9).value, values[-1], rtol=1e-8)


def test_a_negative_definite_hessian_has_a_negative_largest_eigenvalue():
    problem = fb.Problem(lambda w, x: jnp.sum(-(w**2)) * x, np.ones(1), np.ones(1) * 5.0)
    # ½(−|w|² − 5)²: its Hessian at w = 0 is +10 I; with target −5 it is −10 I.
    flipped = fb.Problem(lambda w, x: jnp.sum(-(w**2)) * x, np.ones(1), -np.ones(1) * 5.0)
    zero = jnp.zeros(7)
    np.testing.assert_allclose(largest_eigenpair(problem, zero).value, 10.0, rtol=1e-8)
    np.testing.assert_allclose(largest_eigenpair(flipped, zero).value, -10.0, rtol=1e-8)


def test_agrees_with_arpack_on_a_digits_network():
    problem, params = digits_problem(samples=60)
    flat, unravel = ravel_pytree(params)
    product = jax.jit(lambda v: ravel_pytree(hessian_vector_product(problem, params, unravel(v)))[0])
    operator = scipy.sparse.linalg.LinearOperator((flat.size, flat.size), matvec=product, dtype=float)
    expected = scipy.sparse.linalg.eigsh(operator, k=1, which="LA", tol=1e-10, return_eigenvectors=False)[0]
    np.testing.assert_allclose(largest_eigenpair(problem, params, rtol=1e-5).value, expected, rtol=1e-8)


def test_the_observer_sees_another_eigenvector_overtake():
    # A diagonal quadratic whose second coefficient grows past the first while nothing else moves.
    bulk = jnp.asarray(np.random.default_rng(0).uniform(0, 1, 198))

    def apply(params, x):
        return jnp.concatenate([2.0 * params["w"][:1], params["growth"] * params["w"][1:2], bulk * params["w"][2:]]) * x

    problem = fb.Problem(apply, np.ones(1), np.zeros((1, 200)))

    class Growth(fb.flows.AbstractFlow):
        def __call__(self, problem, params, time=0.0):
            return {"w": jnp.zeros(200), "growth": jnp.ones(())}

    params = {"w": jnp.zeros(200), "growth": jnp.zeros(())}
    run = fb.descend(problem, Growth(), params, step_size=0.0501, steps=60, observe={"sharpness": Sharpness()})
    np.testing.assert_allclose(run.observed["sharpness"], np.maximum(4.0, run.times**2), rtol=1e-3)


def test_warm_starts_save_products():
    problem, params = digits_problem(samples=60)
    cold = largest_eigenpair(problem, params, rtol=1e-3, krylov_dimension=4)
    warm = largest_eigenpair(problem, params, rtol=1e-3, krylov_dimension=4, start=cold.vector)
    assert int(warm.products) == 4 < int(cold.products)
