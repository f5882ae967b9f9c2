import jax
import numpy as np
import pytest

import fibration as fb
from fibration.errors import ParameterError, TimeMismatchError
from problems import digits_problem, quadratic


def test_distance_on_a_quadratic_in_closed_form():
    hessian, start, step = np.diag([1.0, 3.0]), np.array([1.0, 2.0]), 0.1
    problem = quadratic(hessian)
    descent = fb.descend(problem, fb.GradientFlow(), start, step_size=step, steps=30)
    flow = fb.integrate(problem, fb.GradientFlow(), start, t1=3.0, rtol=1e-10, atol=1e-12, times=descent.times)
    times, distances = fb.fidelity.distance(descent, flow)
    k = np.arange(31)[:, None]
    expected = start * ((1 - step * np.diag(hessian)) ** k - np.exp(-step * k * np.diag(hessian)))
    np.testing.assert_array_equal(times, descent.times)
    np.testing.assert_allclose(distances, np.linalg.norm(expected, axis=1), atol=1e-9)
    moved = start * (np.exp(-step * k * np.diag(hessian)) - 1)
    np.testing.assert_allclose(fb.fidelity.distance_from_start(flow), np.linalg.norm(moved, axis=1), atol=1e-9)


def test_only_common_times_are_compared_and_none_is_an_error():
    problem, start = quadratic(np.eye(2)), np.ones(2)
    descent = fb.descend(problem, fb.GradientFlow(), start, step_size=0.3, steps=10)
    flow = fb.integrate(problem, fb.GradientFlow(), start, t1=3.0, times=[0.0, 0.6, 1.0, 2.4])
    np.testing.assert_allclose(fb.fidelity.distance(descent, flow)[0], [0.0, 0.6, 2.4])
    other = fb.integrate(problem, fb.GradientFlow(), start, t1=3.0, times=[0.25, 1.0])
    with pytest.raises(TimeMismatchError, match=r"times=descent\.times"):
        fb.fidelity.distance(descent, other)


def test_bias_vectors_are_part_of_the_distance():
    problem, params = digits_problem(samples=20, hidden=4)
    run = fb.descend(problem, fb.GradientFlow(), params, step_size=0.1, steps=3)
    start, end = (jax.flatten_util.ravel_pytree(p)[0] for p in (params, run.final_params))
    np.testing.assert_allclose(fb.fidelity.distance_from_start(run)[-1], np.linalg.norm(end - start), rtol=1e-12)


def test_trajectories_without_their_parameters_are_refused():
    problem, start = quadratic(np.eye(2)), np.ones(2)
    run = fb.descend(problem, fb.GradientFlow(), start, step_size=0.1, steps=5, options=fb.Options(save="last"))
    with pytest.raises(ParameterError, match="last parameters only"):
        fb.fidelity.distance_from_start(run)
    other = fb.descend(quadratic(np.eye(3)), fb.GradientFlow(), np.ones(3), step_size=0.1, steps=5)
    whole = fb.descend(problem, fb.GradientFlow(), start, step_size=0.1, steps=5)
    with pytest.raises(ParameterError, match=r"shapes \[\(2,\)\] in one trajectory and \[\(3,\)\]"):
        fb.fidelity.distance(whole, other)


def test_euler_is_first_order():
    problem, params = digits_problem(samples=30, hidden=4)
    flow = fb.integrate(problem, fb.GradientFlow(), params, t1=2.0, rtol=1e-10, atol=1e-12, times=[0.0, 2.0])
    ends = []
    for halvings in (8, 9, 10):
        steps = 2**halvings
        run = fb.descend(problem, fb.GradientFlow(), params, step_size=2 / steps, steps=steps, save_every=steps)
        ends.append(fb.fidelity.distance(run, flow)[1][-1])
    orders = np.log2(np.array(ends[:-1]) / ends[1:])
    np.testing.assert_allclose(orders, 1.0, atol=0.05)
