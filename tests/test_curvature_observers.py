import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import fibration as fb
from fibration.curvature import EdgeOfStability, Sharpness, Spectrum, stability
from fibration.errors import ShapeError, StepSizeError
from problems import digits_problem, quadratic


def ends(problem, params):
    flat, unravel = ravel_pytree(params)
    values = np.linalg.eigvalsh(jax.hessian(lambda v: problem.cost(unravel(v)))(flat))
    return values[0], values[-1]


def test_the_spectrum_along_flow_and_descent():
    problem, params = digits_problem(samples=15, hidden=3)
    observe = {"spectrum": Spectrum(), "sharpness": Sharpness(), "edge": EdgeOfStability(0.1)}
    flow = fb.integrate(problem, fb.GradientFlow(), params, t1=2.0, times=[0.0, 1.0, 2.0], observe=observe)
    descent = fb.descend(problem, fb.GradientFlow(), params, step_size=0.1, steps=4, save_every=2, observe=observe)
    for run in (flow, descent):
        seen = run.observed["spectrum"]
        assert seen.shape == (3, 2, 2)
        expected = [ends(problem, jax.tree.map(lambda leaf, i=i: leaf[i], run.params)) for i in range(3)]
        np.testing.assert_allclose(seen[:, :, 0], expected, atol=1e-3 * np.max(expected))
        assert np.all(seen[:, :, 1] <= 1e-3 * np.max(np.abs(seen[:, :, 0]), axis=1)[:, None])
        np.testing.assert_allclose(run.observed["sharpness"], np.array(expected)[:, 1], rtol=1e-3)
        np.testing.assert_allclose(run.observed["edge"], 0.1 * run.observed["sharpness"], rtol=1e-12)


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


def test_a_diverging_run_is_observed_to_its_end():
    problem = fb.Problem(lambda w, x: jnp.exp(w**2) * x, np.ones(1), np.zeros(1))
    observe = {"sharpness": Sharpness(), "spectrum": Spectrum()}
    run = fb.descend(problem, fb.GradientFlow(), jnp.array(1.0), step_size=1.0, steps=20, observe=observe)
    assert run.result.code == "nonfinite"
    assert np.isfinite(run.observed["sharpness"][0])


def test_stability_of_a_quadratic_is_that_of_descent():
    for step_size, state in [(0.2, "stable"), (0.4, "oscillating"), (0.6, "unstable")]:
        problem = quadratic(np.diag([4.0]))
        run = fb.descend(
            problem, fb.GradientFlow(), np.ones(1), step_size=step_size, steps=5, observe={"edge": Sharpness()}
        )
        seen = stability(run.observed["edge"], step_size, run.times)
        assert list(seen.states) == [state] * 6
        factor = run.params[1:, 0] / run.params[:-1, 0]
        np.testing.assert_allclose(factor, 1 - seen.ratio[:-1], rtol=1e-9)
        assert (seen.crossing == 0.0) if state == "unstable" else (seen.crossing is None)


def test_the_crossing_lies_between_the_saved_times():
    times = np.array([0.0, 1.0, 3.0, 4.0])
    seen = stability([1.0, 2.0, 6.0, 3.0], 0.5, times)
    assert list(seen.states) == ["stable", "oscillating", "unstable", "oscillating"]
    assert seen.crossing == pytest.approx(2.0)
    assert stability([np.nan, 6.0], 0.5).crossing == 1.0
    assert list(stability([np.nan, -6.0], 0.5).states) == ["unknown", "stable"]
    assert stability([], 0.5).crossing is None


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: stability([1.0], 0.0), StepSizeError),
        (lambda: stability([1.0], np.inf), StepSizeError),
        (lambda: stability(1.0, 0.1), ShapeError),
        (lambda: stability([1.0, 2.0], 0.1, [0.0]), ShapeError),
        (lambda: EdgeOfStability(-1.0), StepSizeError),
    ],
)
def test_bad_calls_are_named(call, error):
    with pytest.raises(error):
        call()
