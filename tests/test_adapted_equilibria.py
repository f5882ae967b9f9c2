"""The adapted flow at a saddle of the cost: rates from the pencil of the Hessian and the metric (spec 000, 2.3)."""

import jax
import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
from jax.flatten_util import ravel_pytree

import fibration as fb
from adapted import flat

N, K = 40, 13
EXACT = {"rtol": 1e-12, "atol": 1e-15, "method": "dopri8"}


def saddle():
    """A point with ∇C = 0, residual, full column rank and a falling direction: by Newton from unfinished fits."""
    apply, start = fb.networks.mlp((2, 3, 1), "tanh", key=jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(6), (N, 2))
    teacher = fb.networks.mlp((2, 3, 1), "tanh", key=jax.random.key(16))[1]
    targets = jax.vmap(lambda x: apply(teacher, x))(inputs) + 0.1 * np.sin(9 * inputs[:, :1])
    problem = fb.Problem(apply, inputs, targets)
    unravel = ravel_pytree(start)[1]
    residuals = jax.jit(lambda vector: (problem.outputs(unravel(vector)) - targets).ravel())
    gradient = jax.jit(lambda vector: ravel_pytree(problem.gradient(unravel(vector)))[0])
    differential, hessian = jax.jit(jax.jacrev(residuals)), jax.jit(jax.jacfwd(gradient))
    rng = np.random.default_rng(0)
    for _ in range(200):
        fit = scipy.optimize.least_squares(
            residuals, 2 * rng.normal(size=K), jac=differential, max_nfev=rng.integers(3, 25)
        )
        found = scipy.optimize.root(gradient, fit.x, jac=hessian, tol=1e-14)
        D = np.asarray(differential(found.x))
        if np.linalg.norm(found.fun) > 1e-14 or not np.linalg.cond(D) < 1e3:
            continue
        rates, modes = scipy.linalg.eigh(N * np.asarray(hessian(found.x)), D.T @ D)
        if rates[0] < -0.2:
            return problem, unravel, found.x, rates, modes
    raise AssertionError("no saddle was found")


@pytest.mark.slow
def test_modes_at_a_saddle_move_at_the_rates_of_the_pencil():
    problem, unravel, point, rates, modes = saddle()
    flow = fb.AdaptedFlow(damping=0.0, method="qr")
    velocity = jax.jit(lambda vector: ravel_pytree(flow(problem, unravel(vector)))[0])
    assert np.linalg.norm(velocity(point)) < 1e-9
    step = 1e-5
    for rate, mode in zip(rates, (modes / np.linalg.norm(modes, axis=0)).T, strict=True):
        slope = (velocity(point + step * mode) - velocity(point - step * mode)) / (2 * step)
        np.testing.assert_allclose(slope, -rate / N * mode, atol=1e-6 * max(1, np.abs(rates).max()) / N)
    # It leaves the saddle along the first mode, at rate |μ|/N.
    mode = modes[:, 0] / np.linalg.norm(modes[:, 0])
    end = N / abs(rates[0])
    with pytest.warns(fb.errors.RankDeficientWarning):
        run = fb.integrate(problem, flow, unravel(point + 1e-6 * mode), t1=end, times=[0.0, end], **EXACT)
    np.testing.assert_allclose((flat(run.final_params) - point) @ mode, 1e-6 * np.e, rtol=1e-4)
