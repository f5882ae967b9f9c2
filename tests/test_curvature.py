import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree

import fibration as fb
from fibration.curvature import ExtremeEigenvalues, extreme_eigenvalues, hvp
from fibration.errors import (
    NonFiniteCurvatureError,
    ParameterError,
    ShapeError,
    StepSizeError,
    UnknownNameError,
)
from problems import digits_problem, quadratic
from spectra import check_pairs, dense_hessian


@pytest.mark.parametrize("loss", [None, fb.CrossEntropy()])
def test_products_agree_with_the_dense_hessian(loss):
    problem, params = digits_problem(samples=12, hidden=3, loss=loss)
    hessian = dense_hessian(problem, params)
    vector = fb.trees.random_like(jax.random.key(5), params)
    product = ravel_pytree(hvp(problem, params, vector))[0]
    np.testing.assert_allclose(product, hessian @ np.asarray(ravel_pytree(vector)[0]), atol=1e-12)


def test_products_hold_other_leaves_constant():
    params = {"w": jnp.array([1.0, 2.0]), "n": 3, "activation": jnp.tanh}
    problem = fb.Problem(lambda p, x: p["activation"](p["w"] @ x) * p["n"], np.ones((2, 2)), np.zeros(2))
    product = hvp(problem, params, {"w": jnp.array([1.0, 0.0]), "n": 7, "activation": None})
    expected = jax.hessian(lambda w: problem.cost(params | {"w": w}))(params["w"])[:, 0]
    np.testing.assert_allclose(product["w"], expected, rtol=1e-12)
    assert product["n"] is None


@pytest.mark.parametrize("tolerance", [0.3, 1e-3, 1e-6])
@pytest.mark.parametrize(("which", "k"), [("both", 3), ("largest", 1), ("smallest", 1)])
def test_the_residual_bounds_the_error_on_a_network(tolerance, which, k):
    problem, params = digits_problem(samples=20, hidden=4)
    matrix = dense_hessian(problem, params)
    values = np.linalg.eigvalsh(matrix)
    found = extreme_eigenvalues(problem, params, k, which=which, tolerance=tolerance)
    flat = jax.vmap(jax.vmap(lambda tree: ravel_pytree(tree)[0]))(found.vectors)
    check_pairs(found._replace(vectors=flat), matrix, k, which, slack=1e-12)
    assert bool(found.converged)
    assert np.nanmax(found.residuals) <= tolerance * np.max(np.abs(values))
    if tolerance == 1e-6 and which == "both":
        np.testing.assert_allclose(found.smallest, values[:k], rtol=1e-9)
        np.testing.assert_allclose(found.largest, values[::-1][:k], rtol=1e-9)
        assert np.all(found.lower <= values[:k])
        assert np.all(found.upper >= values[::-1][:k])


def test_a_deep_linear_network_with_its_flat_directions():
    apply, params = fb.networks.deep_linear((6, 5, 4, 3), key=jax.random.key(3))
    rng = np.random.default_rng(0)
    problem = fb.Problem(apply, rng.normal(size=(20, 6)), rng.normal(size=(20, 3)))
    values = np.linalg.eigvalsh(dense_hessian(problem, params))
    found = extreme_eigenvalues(problem, params, 2, tolerance=1e-8)
    np.testing.assert_allclose(found.smallest, values[:2], rtol=1e-7)
    np.testing.assert_allclose(found.largest, values[::-1][:2], rtol=1e-7)


def test_agrees_with_arpack_on_a_digits_network():
    problem, params = digits_problem(samples=60)
    flat, unravel = ravel_pytree(params)
    product = jax.jit(lambda v: ravel_pytree(hvp(problem, params, unravel(v)))[0])
    operator = scipy.sparse.linalg.LinearOperator((flat.size, flat.size), matvec=product, dtype=float)
    expected = scipy.sparse.linalg.eigsh(operator, k=4, which="BE", tol=1e-10, return_eigenvectors=False)
    found = extreme_eigenvalues(problem, params, 2, tolerance=1e-5)
    ours = np.concatenate([found.smallest, found.largest[::-1]])
    np.testing.assert_allclose(ours, np.sort(expected), rtol=1e-8)


def test_warm_starts_save_products():
    problem, params = digits_problem(samples=20, hidden=4)
    nearby = jax.tree.map(lambda leaf: 1.001 * leaf, params)
    cold = extreme_eigenvalues(problem, params)
    fresh = extreme_eigenvalues(problem, nearby)
    warm = extreme_eigenvalues(problem, nearby, start=cold)
    assert 2 * int(warm.products) <= int(fresh.products)
    top = jax.tree.map(lambda leaf: leaf[1, 0], cold.vectors)
    single = extreme_eigenvalues(problem, nearby, start=top, which="largest")
    assert int(single.products) < int(extreme_eigenvalues(problem, nearby, which="largest").products)
    for found in (warm, single):
        np.testing.assert_allclose(found.largest, fresh.largest, rtol=1e-6)
    # An end that is missing, as NaN, is no direction to start from.
    half = cold._replace(vectors=jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), cold.vectors))
    np.testing.assert_allclose(extreme_eigenvalues(problem, nearby, start=half).smallest, fresh.smallest, rtol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_narrow_types(dtype):
    problem, params = digits_problem(samples=20, hidden=4)
    values = np.linalg.eigvalsh(dense_hessian(problem, params))
    narrow = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    small = fb.Problem(problem.apply, problem.inputs.astype(np.float32), problem.targets.astype(np.float32))
    found = extreme_eigenvalues(small, narrow)
    assert found.largest.dtype == np.float32
    assert jax.tree.leaves(found.vectors)[0].dtype == dtype
    error = 1e-3 if dtype == np.float32 else 0.05
    np.testing.assert_allclose(found.smallest[0], values[0], atol=error * values[-1])
    np.testing.assert_allclose(found.largest[0], values[-1], atol=error * values[-1])


def test_the_gradient_flows_operator_is_the_hessian():
    problem, params = digits_problem(samples=20, hidden=3)
    hessian, flow = (extreme_eigenvalues(problem, params, flow=f, tolerance=1e-6) for f in (None, fb.GradientFlow()))
    np.testing.assert_allclose(flow.smallest, hessian.smallest, rtol=1e-9)
    np.testing.assert_allclose(flow.largest, hessian.largest, rtol=1e-9)
    assert int(flow.products) == 2 * int(hessian.products)


def test_a_curvature_that_is_not_finite_is_an_error_and_inside_jit_nan():
    problem = fb.Problem(lambda w, x: jnp.sum(jnp.abs(w) ** 1.5) * x, np.ones(1), np.ones(1))
    assert np.isfinite(problem.cost(jnp.zeros(3)))
    with pytest.raises(NonFiniteCurvatureError, match="second derivative"):
        extreme_eigenvalues(problem, jnp.zeros(3))
    for which in ("both", "smallest"):
        found = jax.jit(lambda w, which=which: extreme_eigenvalues(problem, w, which=which))(jnp.zeros(3))
        assert isinstance(found, ExtremeEigenvalues)
        assert np.isnan([found.smallest[0], found.largest[0]]).all()
        assert not bool(found.converged)


PROBLEM, START = quadratic(np.diag([1.0, 2.0, 3.0])), np.ones(3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 4}, ParameterError, "4 eigenvalues of 3"),
        ({"k": 0}, StepSizeError, "k = 0"),
        ({"which": "middle"}, UnknownNameError, "'both'"),
        ({"tolerance": -1.0}, StepSizeError, "tolerance"),
        ({"tolerance": np.nan}, StepSizeError, "tolerance"),
        ({"max_products": 1}, StepSizeError, "at least 2"),
        ({"max_products": 3, "flow": fb.GradientFlow()}, StepSizeError, "at least 4"),
        ({"krylov_dimension": 2}, StepSizeError, "at least 3"),
        ({"start": np.ones(2)}, ShapeError, "2 numbers for 3"),
        ({"start": {}}, ShapeError, "0 numbers"),
        ({"params": np.ones(3) * 1j}, ParameterError, "complex"),
        ({"params": {"n": 3}}, ParameterError, "without floating-point"),
    ],
)
def test_bad_calls_are_named(options, error, message):
    with pytest.raises(error, match=message):
        extreme_eigenvalues(PROBLEM, **({"params": START} | options))


@pytest.mark.slow
def test_both_ends_of_a_hundred_thousand_parameters_within_200_products():
    apply, params = fb.networks.mlp((64, 304, 258, 10), "tanh", key=jax.random.key(0))
    inputs, targets = fb.datasets.digits(samples=150, one_hot=True)
    problem = fb.Problem(apply, inputs - inputs.mean(axis=0), targets)
    params = fb.descend(problem, fb.GradientFlow(), params, step_size=0.02, steps=150).final_params
    assert problem.n_parameters(params) > 100_000
    found = extreme_eigenvalues(problem, params, tolerance=1e-3, max_products=200)
    assert bool(found.converged)
    exact = extreme_eigenvalues(problem, params, tolerance=1e-6, max_products=600, start=found, krylov_dimension=100)
    assert bool(exact.converged)
    scale = float(exact.largest[0])
    assert abs(float(found.smallest[0] - exact.smallest[0])) <= 1e-3 * scale
    assert abs(float(found.largest[0] - exact.largest[0])) <= 1e-3 * scale
