import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import fibration as fb
from fibration.solvers import solve
from problems import digits_problem, quadratic, random_spd

VALUES = [0.0, 0.1, 1.0, 7.0, 40.0]


def exact(hessian, start, times):
    values, vectors = np.linalg.eigh(hessian)
    return (np.exp(-np.outer(times, values)) * (start @ vectors)) @ vectors.T


def worst(run, hessian, start):
    """The largest error over all saved times, relative to the start."""
    error = run.params - exact(hessian, start, run.times)
    return np.max(np.linalg.norm(error, axis=1)) / np.linalg.norm(start)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_quadratic_is_solved_within_the_tolerance_and_better_for_a_smaller_one(seed):
    hessian = random_spd(seed, VALUES)
    start = np.random.default_rng(seed).normal(size=5)
    runs = {
        rtol: fb.integrate(quadratic(hessian), fb.GradientFlow(), start, t1=3.0, rtol=rtol, atol=1e-3 * rtol)
        for rtol in (1e-3, 1e-6, 1e-9)
    }
    errors = {rtol: worst(run, hessian, start) for rtol, run in runs.items()}
    for rtol, error in errors.items():
        assert error <= rtol, errors
    assert errors[1e-9] < errors[1e-6] / 30
    assert errors[1e-6] < errors[1e-3] / 30
    costs = 0.5 * np.einsum("ti,ij,tj->t", exact(hessian, start, runs[1e-9].times), hessian, runs[1e-9].params)
    np.testing.assert_allclose(runs[1e-9].costs, costs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", ["tsit5", "dopri8", "dopri5", "bosh3", diffrax.Dopri5()])
def test_every_method_meets_its_tolerance_between_its_steps_too(method):
    hessian, start = random_spd(0, VALUES), np.ones(5)
    run = fb.integrate(
        quadratic(hessian), fb.GradientFlow(), start, t1=3.0, rtol=1e-7, times=np.linspace(0, 3, 997), method=method
    )
    assert worst(run, hessian, start) < 1e-7


def test_saving_changes_no_step():
    problem, start = quadratic(random_spd(1, VALUES)), np.ones(5)
    few = fb.integrate(problem, fb.GradientFlow(), start, t1=2.0, times=[2.0])
    many = fb.integrate(problem, fb.GradientFlow(), start, t1=2.0, times=np.linspace(0, 2, 777))
    assert few.stats["steps"] == many.stats["steps"]
    np.testing.assert_array_equal(few.params[-1], many.params[-1])
    assert np.array_equal(many.params[0], start)


def test_digits_flow_agrees_with_scipy():
    problem, params = digits_problem()
    flat, unravel = ravel_pytree(params)
    field = jax.jit(lambda y: -ravel_pytree(problem.gradient(unravel(y)))[0])
    reference = scipy.integrate.solve_ivp(
        lambda t, y: np.asarray(field(y)), (0, 20), np.asarray(flat), "DOP853", t_eval=[5, 20], rtol=1e-12, atol=1e-14
    ).y.T
    run = fb.integrate(problem, fb.GradientFlow(), params, t1=20.0, rtol=1e-9, atol=1e-12, times=[5.0, 20.0])
    mine = np.stack([ravel_pytree(jax.tree.map(lambda leaf, i=i: leaf[i], run.params))[0] for i in range(2)])
    travelled = np.linalg.norm(reference[-1] - flat)
    assert np.max(np.linalg.norm(mine - reference, axis=1)) / travelled < 1e-8
    scipy_at_1e9 = scipy.integrate.solve_ivp(
        lambda t, y: np.asarray(field(y)), (0, 20), np.asarray(flat), "DOP853", rtol=1e-9, atol=1e-12
    ).y[:, -1]
    assert np.linalg.norm(mine[-1] - scipy_at_1e9) / travelled < 1e-6
    assert run.stats["method"] == "Dopri8"


@pytest.mark.parametrize("method", ["tsit5", "dopri8", "bosh3"])
def test_evaluations_are_counted_as_they_happen(method):
    calls = []

    class Counting(fb.GradientFlow):
        def __call__(self, problem, params, time=0.0):
            jax.debug.callback(lambda: calls.append(1))
            return super().__call__(problem, params, time)

    problem = quadratic(random_spd(2, VALUES))
    run = fb.integrate(
        problem, Counting(), np.ones(5), t1=2.0, rtol=1e-5, method=method, times=[0.0, 0.3, 0.31, 1.7, 2.0]
    )
    jax.effects_barrier()
    # One more than the statistics: the check of the first velocity, before the run.
    assert len(calls) - 1 == run.stats["gradient_evaluations"]
    assert run.stats["rejected"] > 0 or method != "dopri8"


def test_time_dependent_flow():
    class Forced(fb.flows.AbstractFlow):
        def __call__(self, problem, params, time=0.0):
            return jnp.cos(time) * jnp.ones_like(params)

    run = fb.integrate(quadratic(np.eye(2)), Forced(), np.zeros(2), t0=1.0, t1=3.0, rtol=1e-8)
    np.testing.assert_allclose(run.params[:, 0], np.sin(run.times) - np.sin(1.0), atol=1e-8)
    run = fb.descend(quadratic(np.eye(2)), Forced(), np.zeros(2), step_size=0.5, steps=4)
    np.testing.assert_allclose(run.params[-1, 0], 0.5 * np.sum(np.cos(0.5 * np.arange(4))), rtol=1e-12)


def test_solve_on_a_nonlinear_oscillator_against_scipy():
    def lotka_volterra(time, state):
        return {"prey": state["prey"] * (1 - state["hunters"]), "hunters": state["hunters"] * (state["prey"] - 1)}

    run = solve(lotka_volterra, {"prey": 1.5, "hunters": 0.5}, 12.0, rtol=1e-9, atol=1e-12)
    reference = scipy.integrate.solve_ivp(
        lambda t, y: [y[0] * (1 - y[1]), y[1] * (y[0] - 1)],
        (0, 12),
        [1.5, 0.5],
        "DOP853",
        run.times,
        rtol=1e-12,
        atol=1e-13,
    )
    np.testing.assert_allclose(run.params["prey"], reference.y[0], rtol=1e-7)
    invariant = run.params["prey"] - np.log(run.params["prey"]) + run.params["hunters"] - np.log(run.params["hunters"])
    np.testing.assert_allclose(invariant, invariant[0], atol=1e-8)
    assert run.costs is None
    assert run.result.code == "completed"


def test_solve_turns_a_complex_state():
    run = solve(lambda t, z: 1j * z, jnp.array(1.0 + 0.0j), np.pi, rtol=1e-8)
    np.testing.assert_allclose(run.params, np.exp(1j * run.times), atol=1e-6)


def test_blow_up_returns_what_it_had():
    # y' = y² from 1 is 1/(1 − t): infinite at t = 1.
    run = solve(lambda t, y: y**2, jnp.array(1.0), 2.0, rtol=1e-6, times=np.linspace(0, 2, 21))
    assert run.result.failed
    assert run.result.code in ("step_underflow", "nonfinite")
    assert abs(run.result.time - 1) < 1e-3
    assert np.all(np.isfinite(run.params))
    assert run.times[-1] == run.result.time
    # A relative error made early grows like 1/(1 − t), the condition of the problem.
    left = 1 - run.times[:10]
    assert np.max(np.abs(run.params[:10] * left - 1) * left) < 5e-6
    with pytest.raises(fb.errors.DivergedError, match=r"t = 1|t = 0\.99") as caught:
        run.raise_if_failed()
    assert caught.value.trajectory is run


def test_a_field_that_is_not_defined_beyond_a_time_fails_there():
    run = solve(lambda t, y: jnp.sqrt(1 - t) * y, jnp.array(1.0), 2.0, rtol=1e-6)
    assert run.result.code == "nonfinite"
    assert abs(run.result.time - 1) < 1e-3
    assert np.all(np.isfinite(run.params))


def test_other_tolerances_do_not_compile_again():
    problem, start = quadratic(np.eye(3)), np.ones(3)
    seen = []

    class Spy(fb.GradientFlow):
        def __call__(self, problem, params, time=0.0):
            seen.append(1)
            return super().__call__(problem, params, time)

    fb.integrate(problem, Spy(), start, t1=1.0, rtol=1e-4, stop=fb.Stop(cost_below=1e-9))
    traces = len(seen)
    fb.integrate(problem, Spy(), start, t1=2.0, rtol=1e-5, atol=1e-7, stop=fb.Stop(cost_below=1e-5))
    assert len(seen) == traces + 1  # the abstract check alone


def test_float32_warns_below_its_precision():
    with jax.enable_x64(False):
        problem = fb.Problem(lambda w, x: w * x, np.ones(1), np.zeros(1))
        with pytest.warns(fb.errors.PrecisionWarning, match="jax_enable_x64"):
            fb.integrate(problem, fb.GradientFlow(), 1.0, t1=1.0, rtol=1e-8, atol=1e-8)
        run = fb.integrate(problem, fb.GradientFlow(), 1.0, t1=1.0, rtol=1e-4)
        np.testing.assert_allclose(run.params, np.exp(-run.times), rtol=1e-4)
        assert run.params.dtype == np.float32


def test_memory_is_set_aside_before_the_run():
    problem, start = quadratic(np.eye(3)), np.ones(3)
    with pytest.raises(fb.errors.MemoryBudgetError, match=r"102 saved times with parameters of 24 bytes"):
        fb.integrate(problem, fb.GradientFlow(), start, t1=1.0, options=fb.Options(memory_budget=3000))
    run = fb.integrate(problem, fb.GradientFlow(), start, t1=1.0, options=fb.Options(memory_budget=3000, save="last"))
    assert run.params.shape == (1, 3)
    np.testing.assert_allclose(run.params[0], np.exp(-1.0), rtol=1e-5)
    np.testing.assert_allclose(run.costs, 1.5 * np.exp(-2 * run.times), rtol=1e-4)
    assert run.to_xarray()["params"].shape == (3,)


def test_a_small_buffer_changes_nothing():
    problem, start = quadratic(random_spd(3, VALUES)), np.ones(5)
    call = {"t1": 2.0, "times": np.linspace(0, 2, 50)}
    whole = fb.integrate(problem, fb.GradientFlow(), start, **call)
    pieces = fb.integrate(problem, fb.GradientFlow(), start, **call, options=fb.Options(buffer_bytes=1))
    np.testing.assert_array_equal(whole.params, pieces.params)
    assert whole.stats["gradient_evaluations"] == pieces.stats["gradient_evaluations"]


PROBLEM = quadratic(np.eye(2))
FLOW, START = fb.GradientFlow(), np.ones(2)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: fb.integrate(PROBLEM, FLOW, START, t1=0.0), fb.errors.TimeSpanError),
        (lambda: fb.integrate(PROBLEM, FLOW, START, t1=-1.0), fb.errors.TimeSpanError),
        (lambda: fb.integrate(PROBLEM, FLOW, START, t1=np.nan), fb.errors.TimeSpanError),
        (lambda: fb.integrate(PROBLEM, FLOW, START, t1=np.inf), fb.errors.TimeSpanError),
        (lambda: fb.integrate(PROBLEM, FLOW, START, t1=1.0, times=[0.5, 2.0]), fb.errors.TimeSpanError),
        (lambda: fb.integrate(PROBLEM, FLOW, START, t1=1.0, times=[0.5, 0.5]), fb.errors.TimeSpanError),
        (lambda: fb.integrate(PROBLEM, FLOW, START, t1=1.0, times=[]), fb.errors.TimeSpanError),
        (lambda: fb.integrate(PROBLEM, FLOW, START, t1=1.0, rtol=-1e-3), fb.errors.StepSizeError),
        (lambda: fb.integrate(PROBLEM, FLOW, START, t1=1.0, rtol=0.0, atol=0.0), fb.errors.StepSizeError),
        (lambda: fb.integrate(PROBLEM, FLOW, START, t1=1.0, first_step=2.0), fb.errors.StepSizeError),
        (lambda: fb.integrate(PROBLEM, FLOW, START, t1=1.0, method="euler"), fb.errors.UnknownNameError),
        (lambda: fb.integrate(PROBLEM, FLOW, np.ones(2, int), t1=1.0), fb.errors.ParameterError),
        (lambda: fb.integrate(PROBLEM, FLOW, np.array([1.0, np.nan]), t1=1.0), fb.errors.NonFiniteDataError),
        (lambda: fb.integrate(PROBLEM, FLOW, np.ones(3), t1=1.0), fb.errors.ApplyError),
        (lambda: fb.integrate(PROBLEM, lambda p, w, t: w[:1], START, t1=1.0), fb.errors.ShapeError),
        (lambda: fb.integrate(PROBLEM, lambda p, w, t: (w,), START, t1=1.0), fb.errors.FlowError),
        (lambda: fb.integrate(PROBLEM, lambda p, w, t: w / 0, START, t1=1.0), fb.errors.NonFiniteDataError),
        (lambda: solve(lambda t, y: y, {"y": np.ones(2), "n": 3}, 1.0), fb.errors.FlowError),
    ],
)
def test_bad_input(call, error):
    with pytest.raises(error) as caught:
        call()
    assert all([caught.value.given, caught.value.needed, caught.value.fix])


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "bfloat16"), ("float32", "float64")])
@pytest.mark.parametrize("method", ["tsit5", "dopri8"])
def test_parameters_of_other_types_keep_them(dtypes, method):
    params = {"a": jnp.ones(2, dtypes[0]), "b": jnp.ones((), dtypes[1])}
    problem = fb.Problem(lambda p, x: p["a"].astype(float) * x + 0 * p["b"], np.ones((2, 1)), np.zeros((2, 2)))
    rtol, accuracy = (0.1, 0.02) if dtypes[0] == "bfloat16" else (1e-3, 1e-3)
    run = fb.integrate(problem, fb.GradientFlow(), params, t1=1.0, rtol=rtol, method=method, stop=fb.Stop(time=2.0))
    assert {name: str(leaf.dtype) for name, leaf in run.params.items()} == dict(zip("ab", dtypes, strict=True))
    np.testing.assert_allclose(run.params["a"][:, 0].astype(float), np.exp(-run.times), rtol=accuracy)
    assert float(run.params["b"][-1]) == 1.0

    def wide(problem, params, time):  # a velocity in float64 whatever the parameters are
        return jax.tree.map(lambda leaf: -jnp.exp(-time) * leaf.astype(float), params)

    run = fb.integrate(problem, wide, params, t1=1.0, rtol=rtol, method=method, times=[1.0])
    np.testing.assert_allclose(float(run.params["b"][-1]), np.exp(np.exp(-1.0) - 1), rtol=accuracy)


def test_a_flow_says_what_one_evaluation_costs():
    class Twice(fb.GradientFlow):
        gradient_evaluations = 2

    problem, start = quadratic(np.eye(2)), np.ones(2)
    once, twice = (fb.integrate(problem, flow, start, t1=1.0).stats for flow in (fb.GradientFlow(), Twice()))
    assert twice["gradient_evaluations"] == 2 * once["gradient_evaluations"]
    assert fb.descend(problem, Twice(), start, step_size=0.1, steps=5).stats["gradient_evaluations"] == 10


def test_times_that_float32_cannot_tell_apart_are_refused():
    with jax.enable_x64(False), pytest.raises(fb.errors.TimeSpanError, match="float32"):
        fb.integrate(quadratic(np.eye(2)), fb.GradientFlow(), jnp.ones(2), t0=1e6, t1=1e6 + 1, rtol=1e-3)
