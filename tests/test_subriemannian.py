"""Horizontal and vertical motion: lengths, brackets, holonomy."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fibration as fb
from adapted import flat, jacobian, linear, tanh_problem
from fibration.flows import bracket, holonomy, horizontality

EXACT = {"rtol": 1e-11, "atol": 1e-13, "method": "dopri8"}
FLOW = fb.AdaptedFlow(damping=0.0, method="svd")
N = 6
DONE = fb.Result("completed", 4.0)


@functools.cache
def adapted_run():
    problem, params = tanh_problem()
    return problem, fb.integrate(problem, FLOW, params, t1=1.5 * N, times=np.linspace(0, 1.5 * N, 121), **EXACT)


def test_adapted_flow_is_horizontal_and_as_long_as_the_straight_line():
    problem, run = adapted_run()
    found = horizontality(problem, run, FLOW, method="svd")
    assert np.max(found.defect) < 1e-12
    first = np.sqrt(2 * N * run.costs[0])
    np.testing.assert_allclose(found.horizontal_length, first * (1 - np.exp(-run.times / N)), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.energy, run.costs[0] - run.costs, rtol=1e-6, atol=1e-9)
    sigma = [np.linalg.svd(jacobian(problem, _row(run, i)), compute_uv=False)[-1] for i in range(0, 121, 20)]
    assert found.length[-1] <= first / min(sigma)
    assert "horizontal length" in str(found)


def test_velocities_from_saved_times_are_of_fourth_order():
    """θ = (cos t, sin t) with the output θ₁: defect |cos t|, horizontal length 1 − cos t, energy t/2 − sin(2t)/4."""
    problem, errors = linear([[1.0, 0.0]], [0.0]), []
    for points in (13, 25, 49):
        t = np.linspace(0, 3, points)
        run = fb.Trajectory(t, np.stack([np.cos(t), np.sin(t)], axis=1), None, {}, fb.Result("completed", 3.0))
        found = horizontality(problem, run, method="svd")
        wanted = (np.abs(np.cos(t)), 1 - np.cos(t), t / 2 - np.sin(2 * t) / 4, t)
        parts = (found.defect, found.horizontal_length, found.energy, found.length)
        errors.append([np.max(np.abs(x - y)) for x, y in zip(parts, wanted, strict=True)])
    assert np.all(np.array(errors[1]) < np.array(errors[0]) / 8)
    assert np.all(np.array(errors[2]) < np.array(errors[1]) / 8)
    assert np.max(errors[2]) < 1e-4


def test_standard_flow_is_horizontal_and_longer_and_weight_decay_is_not_horizontal():
    problem, params = tanh_problem()
    run = fb.integrate(problem, fb.GradientFlow(), params, t1=200.0, rtol=1e-8, method="dopri8")
    found = horizontality(problem, run, fb.GradientFlow(), method="svd")
    assert np.max(found.defect) < 1e-9  # −Dᵀ∇C lies in the range of Dᵀ
    straight = np.linalg.norm(np.asarray(problem.outputs(_row(run, -1)) - problem.outputs(params)))
    assert found.horizontal_length[-1] > 1.01 * straight
    assert run.costs[-1] / run.costs[0] > 1e6 * np.exp(-2 * 200 / N)
    decay = fb.flows.WeightDecay(fb.GradientFlow(), 0.1)
    assert horizontality(problem, run, decay, method="svd").defect[0] > 0.05


def unit(problem, i):
    e = np.zeros(problem.n_residuals)
    e[i] = 1
    return e.reshape(problem.targets.shape)


def test_bracket_is_vertical_and_antisymmetric_and_zero_where_nothing_curves():
    problem, params = tanh_problem()
    found = flat(bracket(problem, params, unit(problem, 0), unit(problem, 5)))
    assert np.linalg.norm(jacobian(problem, params) @ found) < 1e-12 * np.linalg.norm(found)
    np.testing.assert_allclose(found, -flat(bracket(problem, params, unit(problem, 5), unit(problem, 0))), atol=1e-12)
    flat_model = linear(np.random.default_rng(0).normal(size=(2, 5)), np.ones(2))
    np.testing.assert_allclose(bracket(flat_model, jnp.ones(5), [[1.0, 0.0]], [[0.0, 1.0]]), 0, atol=1e-14)


def test_bracket_is_the_derivative_of_the_lifts():
    problem, params = tanh_problem()
    vector, unravel = jax.flatten_util.ravel_pytree(params)

    def lift(v, e):
        D = jax.jacrev(lambda u: problem.outputs(unravel(u)).ravel())(v)
        return D.T @ jnp.linalg.solve(D @ D.T, e.ravel())

    first, second = unit(problem, 0), unit(problem, 5)
    fields = [functools.partial(lift, e=jnp.asarray(e)) for e in (first, second)]
    along = [jax.jvp(fields[1 - i], (vector,), (fields[i](vector),))[1] for i in range(2)]
    np.testing.assert_allclose(flat(bracket(problem, params, first, second)), along[0] - along[1], atol=1e-9)


class Side(eqx.Module):
    """From the outputs `first` along a straight line, in unit time."""

    first: jax.Array
    direction: jax.Array

    def __call__(self, t):
        return self.first + t * self.direction


def test_a_closed_square_moves_by_the_bracket():
    """|Δθ − ε²[hᵢ, hⱼ]| = O(ε³) for a square of outputs of side ε."""
    problem, params = tanh_problem()
    first, second = jnp.asarray(unit(problem, 0)), jnp.asarray(unit(problem, 5))
    wanted = flat(bracket(problem, params, first, second))
    errors = []
    for side in (0.01, 0.005, 0.0025):
        here, corners = params, [params]
        for direction in (first, second, -first, -second):
            path = Side(problem.outputs(here), side * direction)
            flow = fb.PathFlow(path, method="svd")
            here = fb.integrate(problem, flow, here, t1=1.0, times=[1.0], **EXACT).final_params
            corners.append(here)
        loop = fb.Trajectory(np.arange(5.0), jax.tree.map(lambda *rows: np.stack(rows), *corners), None, {}, DONE)
        drift = holonomy(problem, loop, method="svd")
        assert drift.gap < 1e-11
        errors.append(np.linalg.norm(flat(drift.drift) / side**2 - wanted) / np.linalg.norm(wanted))
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.6 * errors[1]
    assert errors[2] < 0.2


def test_bad_input():
    problem, run = adapted_run()
    short = fb.Trajectory(run.times[:3], _every(run, 50), None, {}, run.result)
    with pytest.raises(fb.errors.TimeSpanError, match="5 saved times"):
        horizontality(problem, short)
    last = fb.Trajectory(run.times, _every(run, 200), None, {}, run.result)
    with pytest.raises(fb.errors.TimeSpanError, match="save"):
        holonomy(problem, last)
    with pytest.raises(fb.errors.ShapeError):
        bracket(problem, tanh_problem()[1], np.ones(3), np.ones(3))


def _row(run, i):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[i]), run.params)


def _every(run, n):
    return jax.tree.map(lambda leaf: leaf[::n], run.params)
