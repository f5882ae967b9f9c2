import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from hypothesis import given, settings
from hypothesis import strategies as st

import fibration as fb
from fibration.errors import ParameterError, PrecisionWarning, ShapeError, TimeSpanError
from fibration.fidelity import separation_example


@settings(max_examples=40, deadline=None)
@given(st.floats(0.05, 5), st.floats(-3, 3).filter(lambda c: abs(c) > 1e-3), st.floats(0.05, 1))
def test_the_manifold_is_invariant_under_the_flow(m, c, share):
    example = separation_example(m, c, share * np.sqrt((m + 2) / 8) / abs(c))
    x = np.linspace(-example.start_x, example.start_x, 11)
    y = example.manifold(x)
    slope = np.polynomial.Polynomial(np.append([0.0], np.stack([0 * example.coefficients, example.coefficients], 1)))
    slope = slope.deriv()(x)
    np.testing.assert_allclose(slope * (-x - 2 * c * x * y), m * y - c * x**2, atol=1e-12 * abs(c) * example.start_x**2)


@pytest.mark.parametrize(("m", "c", "x0"), [(0.5, 1.0, 0.3), (1.0, -2.0, 0.25), (3.0, 1.0, 0.7)])
def test_the_flow_agrees_with_scipy_while_it_can_and_tends_to_the_saddle(m, c, x0):
    example = separation_example(m, c, x0)
    field = lambda t, p: [-p[0] - 2 * c * p[0] * p[1], m * p[1] - c * p[0] ** 2]  # noqa: E731
    times = np.linspace(0, 4, 9)
    start = np.asarray(example.start)
    solved = scipy.integrate.solve_ivp(field, (0, 4), start, "DOP853", times, rtol=1e-13, atol=1e-15).y.T
    np.testing.assert_allclose(example.flow(times), solved, atol=1e-12 * np.exp(m * 4))
    np.testing.assert_array_equal(example.flow(times)[0], start)
    late = example.flow([0.0, 50.0, 300.0])
    assert np.all(np.diff(np.abs(late[:, 0])) < 0)
    np.testing.assert_allclose(late[1, 1], c * late[1, 0] ** 2 / (m + 2), rtol=1e-12)


def test_cost_and_gradient_are_those_of_a_problem():
    example = separation_example(0.7, 1.3)
    point = jnp.array([0.4, -0.2])
    x, y = 0.4, -0.2
    np.testing.assert_allclose(example.problem.cost(point), x**2 / 2 - 0.35 * y**2 + 1.3 * x**2 * y, rtol=1e-14)
    np.testing.assert_allclose(example.problem.gradient(point), [x + 2.6 * x * y, -0.7 * y + 1.3 * x**2], rtol=1e-14)
    hessian = jax.jacfwd(example.problem.gradient)(jnp.zeros(2))
    np.testing.assert_allclose(hessian, np.diag([1.0, -0.7]), atol=1e-15)
    # The solvers take it as they take every problem.
    flow = fb.integrate(
        example.problem,
        fb.GradientFlow(),
        example.start,
        2.0,
        method="dopri8",
        rtol=1e-11,
        atol=1e-13,
        times=[1.0, 2.0],
    )
    np.testing.assert_allclose(flow.params, example.flow([1.0, 2.0]), atol=1e-10)


def needed_step_size(example, error, time):
    """Find the step size at which the measured distance is `error`, by the secant method on its near-linear law."""
    steps = time / example.required_step_size(error, time)
    for _ in range(3):
        steps *= example.measured_error(max(2, round(steps)), time) / error
    return time / steps


@pytest.mark.parametrize(("m", "times"), [(0.5, (8.0, 12.0, 16.0)), (1.0, (5.0, 7.0, 9.0))])
def test_the_needed_step_size_falls_exponentially_in_time(m, times):
    example = separation_example(m, 1.0, 0.3)
    error = 1e-3
    needed = [needed_step_size(example, error, time) for time in times]
    predicted = [example.required_step_size(error, time) for time in times]
    slopes = np.diff(np.log(needed)) / np.diff(times)
    np.testing.assert_allclose(slopes, -m, rtol=0.02)
    np.testing.assert_allclose(needed, predicted, rtol=0.1)


def test_the_leading_order_is_exact_for_a_small_start_and_step():
    example = separation_example(0.8, 1.0, 0.05)
    ratios = [example.measured_error(steps, 8.0) / example.predicted_error(8.0 / steps, 8.0) for steps in (4000, 8000)]
    # What is of order η halves with it; what is left are terms of order (c x₀)² = 0.0025 and e^{−(m+2)T} T.
    np.testing.assert_allclose(2 * ratios[1] - ratios[0], 1.0, atol=4e-3)
    np.testing.assert_allclose(ratios[0] - 1, 2 * (ratios[1] - 1), atol=4e-3)
    required = 1e-4 * 2.8**2 * np.exp(-4.8) / 0.05**2
    np.testing.assert_allclose(example.required_step_size(1e-4, 6.0), required, rtol=1e-12)


def test_descent_leaves_while_the_flow_converges():
    example = separation_example(1.0, 1.0, 0.3)
    run = fb.descend(example.problem, fb.GradientFlow(), example.start, step_size=0.1, steps=100)
    flow = example.flow(run.times)
    distances = np.linalg.norm(run.params - flow, axis=1)
    assert np.linalg.norm(flow[-1]) < 1e-4
    assert distances[-1] > 0.1 > 50 * distances[1]


def test_float32_is_warned_of():
    with jax.enable_x64(False):
        example = separation_example(1.0)
        with pytest.warns(PrecisionWarning, match="enable float64"):
            example.measured_error(100_000, 8.0)
        assert example.flow([1.0]).dtype == np.float64


def test_what_the_example_is_not_for_is_refused():
    for arguments in ((0.0,), (-1.0,), (1.0, 0.0), (1.0, 1.0, 0.7), (1.0, 1.0, -0.1), (np.nan,)):
        with pytest.raises(ParameterError, match="closer to the saddle"):
            separation_example(*arguments)
    example = separation_example(1.0)
    with pytest.raises(TimeSpanError, match="start at t = 0"):
        example.flow([-1.0])
    with pytest.raises(ShapeError, match=r"vector \(2,\)"):
        fb.integrate(example.problem, fb.GradientFlow(), jnp.zeros(3), 1.0)
    with pytest.raises(ParameterError, match="sum of squares"):
        example.problem.residuals(example.start)
