"""Outputs along a prescribed path: by a flow, and by predictor and corrector where flows slide."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import fibration as fb
from adapted import TANH, flat, fold, outputs, residuals, scalar, tanh_data, tanh_problem

EXACT = {"rtol": 1e-12, "atol": 1e-14, "method": "dopri8"}
N = 6
RELU = fb.networks.mlp((2, 32, 2), "relu", key=jax.random.key(0))[0]


def sliding(p, x):
    """Outputs (relu(w) + b, w + c): rank 2 everywhere, and yet the adapted flow slides along w = 0."""
    return jnp.where(x == 0, jax.nn.relu(p[0]) + p[1], p[0] + p[2])


def sliding_problem():
    """And its start, with r₀ = (2, −1)."""
    return fb.Problem(sliding, jnp.array([0.0, 1.0]), jnp.zeros(2)), jnp.array([0.0, 2.0, -1.0])


def test_straight_line_reaches_the_targets_in_unit_time():
    problem, params = tanh_problem()
    run = fb.integrate(problem, fb.PathFlow(method="svd"), params, t1=1.0, times=np.linspace(0, 1, 5), **EXACT)
    x, y = outputs(problem, run), np.asarray(problem.targets).ravel()
    np.testing.assert_allclose(x, x[0] + run.times[:, None] * (y - x[0]), atol=1e-11)
    # It is the adapted flow on another clock, t = 1 − e^{−s/N}.
    same = fb.integrate(
        problem, fb.AdaptedFlow(0.0, "svd"), params, t1=N * np.log(4), times=[0.0, N * np.log(4)], **EXACT
    )
    np.testing.assert_allclose(
        flat(same.final_params), flat([leaf[3] for leaf in jax.tree.leaves(run.params)]), atol=1e-10
    )


def test_feedback_pulls_errors_in():
    """With γ ≡ y and κ the distance decays as e^{−κt}, also from a start that is off the path."""
    problem, params = tanh_problem()
    still = fb.PathFlow(lambda t: problem.targets, feedback=10.0, method="svd")
    run = fb.integrate(problem, still, params, t1=0.5, times=[0.0, 0.5], **EXACT)
    r = residuals(problem, run)
    np.testing.assert_allclose(r[1], np.exp(-5) * r[0], rtol=1e-7, atol=1e-12)


@functools.cache
def loop(radius=0.5):
    """A circle in the plane of the first two outputs, back to the start at t = 1."""
    problem, params = tanh_problem()
    first = problem.outputs(params)

    def path(t):
        angle = 2 * jnp.pi * t
        return first.at[0, 0].add(radius * (jnp.cos(angle) - 1)).at[0, 1].add(radius * jnp.sin(angle))

    return problem, params, path


def test_closed_loop_is_followed_and_leaves_a_holonomy():
    problem, params, path = loop()
    run = fb.integrate(problem, fb.PathFlow(path, method="svd"), params, t1=1.0, times=np.linspace(0, 1, 9), **EXACT)
    wanted = np.stack([np.asarray(path(t)).ravel() for t in run.times])
    np.testing.assert_allclose(outputs(problem, run), wanted, atol=5e-11)
    drift = fb.flows.holonomy(problem, run, method="svd")
    assert drift.gap < 1e-10
    assert drift.length > 0.05
    assert drift.length == pytest.approx(np.linalg.norm(flat(run.final_params) - flat(params)))
    assert drift.vertical <= drift.length
    # Following in steps comes to the same parameters, to first order in the step.
    errors = []
    for step in (0.02, 0.01):
        steps = fb.follow(problem, params, 1.0, path=path, step=step, method="svd", times=[0.0, 1.0])
        np.testing.assert_allclose(outputs(problem, steps)[-1], wanted[-1], atol=1e-10)
        errors.append(np.linalg.norm(flat(steps.final_params) - flat(run.final_params)))
    assert errors[1] < 0.6 * errors[0]


def test_untrackable_paths_of_a_duplicated_input():
    inputs, targets, params = tanh_data()
    problem = fb.Problem(TANH, inputs.at[3].set(inputs[1]), targets)
    with pytest.warns(fb.errors.RankDeficientWarning):
        run = fb.integrate(problem, fb.PathFlow(method="svd"), params, t1=1.0, times=[0.0, 1.0], **EXACT)
    r = residuals(problem, run)[-1].reshape(6, 2)
    np.testing.assert_allclose(r[[0, 2, 4, 5]], 0, atol=1e-11)
    np.testing.assert_allclose(r[1], (np.asarray(targets[3]) - np.asarray(targets[1])) / 2, atol=1e-11)


def test_relu_slides_and_the_flow_does_not_keep_the_law():
    """r₁(t) = ρ(t) e^{−t} with ρ' = (ρ − 1)/(2ρ + 1), ρ(0) = 2, on the sliding arc; without sliding ρ would stay 2."""
    rho = scipy.integrate.solve_ivp(lambda t, r: (r - 1) / (2 * r + 1), (0, 3), [2.0], rtol=1e-12, atol=1e-12).y[0, -1]
    assert rho == pytest.approx(2.70216, abs=5e-6)
    problem, start = sliding_problem()
    with pytest.warns(fb.errors.NonsmoothModelWarning, match="relu"):
        run = fb.descend(problem, fb.AdaptedFlow(0.0, "svd"), start, step_size=2e-4, steps=30000, save_every=30000)
    # Time t/N with N = 2.
    reached = outputs(problem, run)[-1, 0] * np.exp(3)
    assert reached == pytest.approx(rho, abs=2e-3)
    assert abs(run.final_params[0]) < 1e-3


def test_relu_is_followed_with_the_law_of_the_outputs():
    problem, start = sliding_problem()
    run = fb.follow(problem, start, 6.0, method="svd")
    r = residuals(problem, run)
    np.testing.assert_allclose(r, np.exp(-run.times / 2)[:, None] * r[0], atol=1e-13)
    assert run.result.code == "completed"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [11, 22])
def test_relu_networks_are_followed_along_many_kinks(seed):
    """Seeds on which Newton's method alone gets stuck, jumping to and fro across up to ten kinks at once."""
    params = fb.networks.mlp((2, 32, 2), "relu", key=jax.random.key(seed))[1]
    problem = fb.Problem(RELU, *tanh_data(seed)[:2])
    run = fb.follow(problem, params, 6.0 * N, times=np.linspace(0, 6 * N, 13), method="svd")
    assert run.result.code == "completed"
    r = residuals(problem, run)
    assert np.max(np.abs(r - np.exp(-run.times / N)[:, None] * r[0])) < 1e-9


def test_following_is_as_exact_for_every_step():
    problem, params = tanh_problem()
    for step in (0.5 * N, 0.1 * N):
        run = fb.follow(problem, params, 6.0 * N, step=step, times=[0.0, 1.7, 6.0 * N], tolerance=1e-13, method="svd")
        r = residuals(problem, run)
        np.testing.assert_allclose(r, np.exp(-run.times / N)[:, None] * r[0], atol=2e-13)
        assert run.stats["steps"] == round(6 * N / step)


def test_what_cannot_be_followed_is_said():
    run = fb.follow(scalar(fold, 1.0), jnp.array(0.0), 2.0, method="svd")
    assert run.result.code == "rank_loss"
    assert run.result.time == pytest.approx(np.log(2), abs=1e-5)
    run = fb.follow(scalar(jnp.tanh, 2.0), jnp.array(0.0), 2.0, method="svd")
    assert run.result.code == "blow_up"
    assert run.result.time == pytest.approx(np.log(2), abs=1e-5)
    inputs, targets, params = tanh_data()
    twins = fb.Problem(TANH, inputs.at[3].set(inputs[1]), targets)
    run = fb.follow(twins, params, 6.0, method="svd")
    assert run.result.code == "step_underflow"
    assert "on the path" in run.result.message


def test_following_resumes_and_refuses_bad_input(tmp_path):
    problem, params, path = loop()
    call = {"path": path, "method": "svd", "times": [0.0, 0.5, 1.0], "checkpoint": tmp_path}
    part = fb.follow(problem, params, 1.0, options=fb.Options(max_steps=7), **call)
    assert part.result.code == "max_steps"
    again = fb.follow(problem, params, 1.0, **call)
    whole = fb.follow(problem, params, 1.0, **{**call, "checkpoint": None})
    np.testing.assert_array_equal(flat(again.final_params), flat(whole.final_params))
    for bad in ({"step": 0.0}, {"tolerance": -1.0}, {"path": lambda t: jnp.ones(3) * t}, {"method": "magic"}):
        with pytest.raises(fb.errors.FibrationError):
            fb.follow(problem, params, 1.0, **bad)
    classes = fb.Problem(TANH, problem.inputs, np.zeros(6, int), loss=fb.CrossEntropy(2))
    with pytest.raises(fb.errors.ParameterError, match="CrossEntropy"):
        fb.follow(classes, params, 1.0)
