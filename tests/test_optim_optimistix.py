"""`fb.optim.AdaptedLeastSquares`: the method as a solver of optimistix."""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest
import scipy.optimize

import fibration as fb
from test_optim import fitting

SOLVER = fb.optim.AdaptedLeastSquares(rtol=1e-10, atol=1e-10)


def rosenbrock(y, args):
    return jnp.array([10 * (y[1] - y[0] ** 2), args - y[0]])


def test_it_agrees_with_minimize_and_with_plain_functions():
    problem, params = fitting(6, hidden=8)
    fn, args = fb.optim.residual_function(problem)
    np.testing.assert_array_equal(fn(params, args), problem.residuals(params))
    run = fb.optim.minimize(problem, params, 5, 0)
    ends = []
    for function, arguments in ((fn, args), (lambda p, _: problem.residuals(p), None)):
        found = optimistix.least_squares(function, SOLVER, params, arguments, max_steps=5, throw=False)
        assert found.stats["num_steps"] == 5
        ends.append(float(problem.cost(found.value)))
    np.testing.assert_allclose(ends, run.costs[-1], rtol=1e-6)
    found = optimistix.least_squares(fn, SOLVER, params, args)
    assert float(problem.cost(found.value)) < 1e-20


@pytest.mark.parametrize("rows", [1, 4], ids=["wide", "tall"])
def test_pytrees_of_residuals_against_scipy(rows):
    rng = np.random.default_rng(3)
    data = rng.normal(size=(rows, 2)), rng.normal(size=rows)

    def residuals(y, args):
        x, t = args
        return {"fit": jnp.tanh(x @ y["w"]) + y["b"] ** 2 - t, "small": (0.1 * y["b"],)}

    found = optimistix.least_squares(residuals, SOLVER, {"w": jnp.ones(2), "b": jnp.array(0.5)}, data)

    def flat(v):
        return np.append(np.tanh(data[0] @ v[1:]) + v[0] ** 2 - data[1], 0.1 * v[0])

    best = scipy.optimize.least_squares(flat, [0.5, 1, 1], xtol=1e-15, ftol=1e-15, gtol=1e-15)
    cost = 0.5 * sum(float(jnp.sum(r**2)) for r in jax.tree.leaves(residuals(found.value, data)))
    np.testing.assert_allclose(cost, best.cost, rtol=1e-8, atol=1e-14)


def test_interface():
    found = optimistix.least_squares(rosenbrock, SOLVER, jnp.array([-1.2, 1.0]), 1.0)
    np.testing.assert_allclose(found.value, 1, atol=1e-9)
    assert found.result == optimistix.RESULTS.successful
    assert int(found.stats["rejected"]) >= 0
    # Auxiliary output, and the derivative of the solution (a, a²) in the data.
    solve = jax.jit(lambda a: optimistix.least_squares(
        lambda y, args: (rosenbrock(y, args), y[0] * 2), SOLVER, jnp.array([0.5, 0.0]), a, has_aux=True
    ))  # fmt: skip
    np.testing.assert_allclose(solve(1.5).aux, 3.0, atol=1e-8)
    np.testing.assert_allclose(jax.jacobian(lambda a: solve(a).value)(1.5), [1.0, 3.0], atol=1e-6)
    stopped = optimistix.least_squares(rosenbrock, SOLVER, jnp.array([-1.2, 1.0]), 1.0, max_steps=2, throw=False)
    assert stopped.result == optimistix.RESULTS.nonlinear_max_steps_reached
    # A minimum with residuals is success; residuals that are NaN are not.
    linear = optimistix.least_squares(lambda y, _: jnp.stack([y, y - 2]), SOLVER, jnp.array(5.0))
    np.testing.assert_allclose(linear.value, 1.0, atol=1e-9)
    lost = optimistix.least_squares(lambda y, _: jnp.log(-y), SOLVER, jnp.array(0.7), throw=False)
    assert lost.result == optimistix.RESULTS.nonlinear_divergence


def test_bad_input():
    problem, params = fitting(4)
    with pytest.raises(fb.errors.ParameterError, match="damping"):
        fb.optim.AdaptedLeastSquares(1e-3, 1e-3, damping=0.0)
    with pytest.raises(fb.errors.UnknownNameError, match="cholesky"):
        fb.optim.AdaptedLeastSquares(1e-3, 1e-3, method="choleski")
    fn, args = fb.optim.residual_function(problem)
    with pytest.raises(fb.errors.ApplyError):
        optimistix.least_squares(fn, SOLVER, params[:2], args)
