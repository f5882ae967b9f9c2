import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fibration as fb
from fibration.errors import MemoryBudgetError, ObserverError, StepSizeError, UnknownNameError
from problems import digits_problem, quadratic, random_spd


def test_gradient_descent_on_a_quadratic_in_closed_form():
    hessian, start, step = random_spd(0, [0.1, 1.0, 5.0]), np.array([1.0, -2.0, 3.0]), 0.3
    run = fb.descend(quadratic(hessian), fb.GradientFlow(), start, step_size=step, steps=40)
    expected = np.stack([np.linalg.matrix_power(np.eye(3) - step * hessian, k) @ start for k in range(41)])
    np.testing.assert_allclose(run.params, expected, atol=1e-13)
    np.testing.assert_allclose(run.times, step * np.arange(41), rtol=1e-15)
    np.testing.assert_allclose(run.costs, 0.5 * np.einsum("ti,ij,tj->t", expected, hessian, expected), rtol=1e-12)
    assert run.stats["gradient_evaluations"] == 40


def test_saved_steps_are_the_multiples_the_start_and_the_end():
    problem, start = quadratic(np.eye(2)), np.ones(2)
    every = fb.descend(problem, fb.GradientFlow(), start, step_size=0.1, steps=23)
    some = fb.descend(problem, fb.GradientFlow(), start, step_size=0.1, steps=23, save_every=10)
    kept = [0, 10, 20, 23]
    np.testing.assert_array_equal(some.times, every.times[kept])
    np.testing.assert_array_equal(some.params, every.params[kept])


@pytest.mark.parametrize(
    "optimiser",
    [
        optax.sgd(0.1, momentum=0.9),
        optax.adam(1e-2),
        optax.adamw(optax.cosine_decay_schedule(1e-2, 50)),
        optax.noisy_sgd(1e-3, key=3),
        optax.lbfgs(),
        optax.polyak_sgd(),
    ],
    ids=["momentum", "adam", "schedule", "noisy", "lbfgs", "polyak"],
)
def test_any_optax_optimiser_as_in_a_loop_by_hand(optimiser):
    problem, params = digits_problem(samples=30, hidden=5)
    run = fb.descend(problem, optimiser, params, steps=6)
    by_hand, state = params, optimiser.init(params)
    update = jax.jit(
        lambda p, s, g, v: optax.with_extra_args_support(optimiser).update(
            g, s, p, value=v, grad=g, value_fn=problem.cost
        )
    )
    for _ in range(6):
        value, gradient = problem.cost_and_gradient(by_hand)
        updates, state = update(by_hand, state, gradient, value)
        by_hand = optax.apply_updates(by_hand, updates)
    for a, b in zip(jax.tree.leaves(run.final_params), jax.tree.leaves(by_hand), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    assert run.times[-1] == 6
    assert run.stats["method"] == "optax"


def test_an_unstable_descent_returns_what_it_had():
    hessian, start = np.diag([1.0, 10.0]), np.ones(2)
    run = fb.descend(quadratic(hessian), fb.GradientFlow(), start, step_size=0.5, steps=5000)  # 1 − ηλ = −4
    assert run.result.code == "nonfinite"
    assert run.result.time == run.times[-1]
    assert np.all(np.isfinite(run.params))
    # The cost, about 5·16^k, overflows first, a step early since its squares are summed before they are halved; the
    # parameters before are those of the closed form.
    overflow = int((np.log10(np.finfo(float).max) - np.log10(5)) / np.log10(16)) + 1
    assert len(run.times) in (overflow, overflow + 1)
    np.testing.assert_allclose(run.params[:20, 1], (-4.0) ** np.arange(20), rtol=1e-12)
    with pytest.raises(fb.errors.DivergedError, match="smaller step size"):
        run.raise_if_failed()


def test_stop_conditions():
    problem, start, flow = quadratic(np.eye(1)), np.ones(1), fb.GradientFlow()
    call = {"step_size": 0.1, "steps": 1000}
    costs = 0.5 * 0.9 ** (2 * np.arange(1001))

    run = fb.descend(problem, flow, start, **call, stop=fb.Stop(cost_below=1e-4))
    first = int(np.argmax(costs < 1e-4))
    assert (run.result.code, run.stats["steps"], len(run.times)) == ("cost_below", first, first + 1)
    np.testing.assert_allclose(run.costs[-1], costs[first], rtol=1e-12)

    run = fb.descend(problem, flow, start, **call, stop=fb.Stop(gradient_norm_below=1e-2))
    first = int(np.argmax(0.9 ** np.arange(1001) < 1e-2))
    assert (run.result.code, run.stats["steps"]) == ("gradient_norm_below", first)
    assert run.stats["gradient_evaluations"] == 2 * first + 1  # one to step, one to test, and one for the start

    run = fb.descend(problem, flow, start, **call, stop=fb.Stop(time=1.25), save_every=100)
    assert (run.result.code, run.stats["steps"]) == ("time", 13)
    np.testing.assert_allclose(run.times, [0.0, 1.3])  # the stop is saved though no multiple of 100

    stop = fb.Stop(cost_below=1e-30, when={"halved": lambda problem, params, time: params[0] < 0.5})
    run = fb.integrate(problem, flow, start, t1=9.0, stop=stop, first_step=0.01)
    assert run.result.code == "halved"
    assert run.params[-1, 0] < 0.5
    assert run.times[-1] == run.result.time
    np.testing.assert_allclose(run.params[:, 0], np.exp(-run.times), rtol=1e-5)

    run = fb.integrate(problem, flow, start, t0=-2.0, t1=0.0, times=[0.0], stop=fb.Stop(cost_below=1.0))
    assert (run.result.code, run.stats["steps"], run.times.tolist()) == ("cost_below", 0, [-2.0])
    run = fb.integrate(problem, flow, start, t0=-2.0, t1=0.0, times=[0.0], progress=lambda p: p.fraction)
    np.testing.assert_allclose(run.params[-1], np.exp(-2.0), rtol=1e-5)

    run = fb.descend(problem, flow, start, **call, stop=fb.Stop(wall_seconds=1e-9))
    assert run.result.code == "wall_seconds"
    run = fb.descend(problem, flow, start, **call, options=fb.Options(max_steps=7))
    assert (run.result.code, run.stats["steps"], run.result.failed) == ("max_steps", 7, True)


def test_plain_observers_and_their_shapes():
    problem, start = quadratic(np.eye(2)), np.ones(2)
    seen = []

    def spy(problem, params):
        seen.append(params)
        return jnp.sum(params)

    run = fb.descend(
        problem,
        fb.GradientFlow(),
        start,
        step_size=0.1,
        steps=4,
        save_every=2,
        observe={"sum": spy, "gradient": lambda p, w: p.gradient(w), "label": lambda p, w: 3},
    )
    np.testing.assert_allclose(run.observed["sum"], run.params.sum(axis=1), rtol=1e-14)
    np.testing.assert_allclose(run.observed["gradient"], run.params, rtol=1e-12)
    assert run.observed["label"].tolist() == [3, 3, 3]
    np.testing.assert_array_equal(np.stack(seen), run.params)  # what an observer keeps is not rewritten later
    table = run.to_xarray()
    assert table["observed/gradient"].dims == ("time", "observed/gradient_0")
    np.testing.assert_array_equal(table["time"], run.times)
    assert table.attrs["result"] == "completed"


def test_a_stateful_observer_integrates_along_the_way():
    class Length:
        def init(self, problem, params):
            return params, jnp.zeros(())

        def update(self, problem, params, time, state):
            before, length = state
            length = length + jnp.linalg.norm(params - before)
            return length, (params, length)

    run = fb.descend(
        quadratic(np.diag([1.0, 3.0])),
        fb.GradientFlow(),
        np.ones(2),
        step_size=0.2,
        steps=9,
        observe={"length": Length()},
    )
    lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(run.params, axis=0), axis=1))])
    np.testing.assert_allclose(run.observed["length"], lengths, rtol=1e-13)


def test_an_observer_that_raises_loses_nothing():
    def moody(problem, params):
        if params[0] < 0.7:
            raise ZeroDivisionError("too small")
        return params[0]

    with pytest.raises(ObserverError, match=r"'moody' raised ZeroDivisionError at t = 0\.4: too small") as caught:
        fb.descend(quadratic(np.eye(1)), fb.GradientFlow(), np.ones(1), step_size=0.1, steps=9, observe=[moody])
    kept = caught.value.trajectory
    np.testing.assert_allclose(kept.params[:, 0], 0.9 ** np.arange(4), rtol=1e-14)
    np.testing.assert_allclose(kept.observed["moody"], kept.params[:, 0])
    assert len(kept.costs) == len(kept.times) == 4


def test_an_observer_that_changes_its_shape_is_named():
    sizes = iter([2, 2, 3])
    with pytest.raises(ObserverError, match=r"shape \(3,\) at t = 0.2"):
        fb.descend(
            quadratic(np.eye(1)),
            fb.GradientFlow(),
            np.ones(1),
            step_size=0.1,
            steps=9,
            observe={"x": lambda p, w: np.zeros(next(sizes))},
        )


def test_progress_is_reported_to_its_end():
    reports = []
    run = fb.descend(
        quadratic(np.eye(1)), fb.GradientFlow(), np.ones(1), step_size=0.1, steps=500, progress=reports.append
    )
    fractions = [report.fraction for report in reports]
    assert fractions == sorted(fractions)
    assert [report.finished for report in reports] == [False] * (len(reports) - 1) + [True]
    last = reports[-1]
    assert (last.fraction, last.steps, last.gradient_evaluations) == (1.0, 500, 500)
    assert last.cost == run.costs[-1]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_steps():
    import os
    import resource
    import subprocess
    import sys

    script = """
import sys, numpy as np, resource, fibration as fb, jax.numpy as jnp
n = 200_000
problem = fb.Problem(lambda w, x: w * x, jnp.ones((1, n)), jnp.zeros((1, n)))
def peak(steps):
    fb.descend(problem, fb.GradientFlow(), jnp.ones(n), step_size=1e-4, steps=steps, save_every=steps)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
first = peak(100)
print(peak(20_000) - first)
"""
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ, timeout=200
    )
    # 20 000 states would be 16 GB; in kilobytes:
    assert int(answer.stdout) < 50_000


PROBLEM, FLOW, START = quadratic(np.eye(2)), fb.GradientFlow(), np.ones(2)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: fb.descend(PROBLEM, FLOW, START, steps=3), StepSizeError),
        (lambda: fb.descend(PROBLEM, FLOW, START, steps=3, step_size=0.0), StepSizeError),
        (lambda: fb.descend(PROBLEM, FLOW, START, steps=3, step_size=-0.1), StepSizeError),
        (lambda: fb.descend(PROBLEM, FLOW, START, steps=3, step_size=np.nan), StepSizeError),
        (lambda: fb.descend(PROBLEM, FLOW, START, steps=0, step_size=0.1), StepSizeError),
        (lambda: fb.descend(PROBLEM, FLOW, START, steps=3, step_size=0.1, save_every=0), StepSizeError),
        (lambda: fb.descend(PROBLEM, optax.sgd(0.1), START, steps=3, step_size=0.1), StepSizeError),
        (lambda: fb.descend(PROBLEM, FLOW, START, steps=3, step_size=0.1, observe={"x": 3}), UnknownNameError),
        (lambda: fb.descend(PROBLEM, FLOW, np.ones(10**6), steps=10**6, step_size=0.1), fb.errors.ApplyError),
        (
            lambda: fb.descend(
                PROBLEM, FLOW, START, steps=10**6, step_size=0.1, options=fb.Options(memory_budget=10**6)
            ),
            MemoryBudgetError,
        ),
        (lambda: fb.Stop(cost_below=-1.0), StepSizeError),
        (lambda: fb.Stop(when={"completed": lambda p, w, t: True}), UnknownNameError),
        (lambda: fb.Options(max_steps=0), StepSizeError),
        (lambda: fb.Checkpoint("x", every=-1.0), StepSizeError),
    ],
)
def test_bad_input(call, error):
    with pytest.raises(error) as caught:
        call()
    assert all([caught.value.given, caught.value.needed, caught.value.fix])


def test_a_step_size_that_makes_the_cost_infinite_ends_the_run_there():
    run = fb.descend(quadratic(np.eye(1)), fb.GradientFlow(), np.ones(1), step_size=1e6, steps=30)
    first = int(np.argmax(2 * 6 * np.arange(31) > 308))  # the cost is half of 10^12k
    assert run.result.code == "nonfinite"
    assert len(run.times) == first + 1
    assert run.result.time == run.times[-1] == first * 1e6
    assert np.all(np.isfinite(run.params))
    assert np.all(np.isfinite(run.costs[:-1]))


def test_integer_arrays_of_numpy_among_the_parameters_stay_what_they_are():
    params = {"w": jnp.ones(3), "order": np.array([2, 1, 0])}
    problem = fb.Problem(lambda p, x: p["w"][p["order"]] @ x, np.eye(3), np.arange(3.0))
    run = fb.descend(problem, fb.GradientFlow(), params, step_size=0.1, steps=2)
    np.testing.assert_array_equal(run.final_params["order"], [2, 1, 0])
    assert float(problem.cost(run.final_params)) == pytest.approx(run.costs[-1])
    assert list(run.to_xarray().data_vars) == ["cost", "params/w"]
    flow = fb.integrate(problem, fb.GradientFlow(), params, t1=0.2, times=run.times)
    np.testing.assert_allclose(
        fb.fidelity.distance(run, flow)[1], np.linalg.norm(run.params["w"] - flow.params["w"], axis=1)
    )


def test_python_numbers_are_parameters_everywhere():
    problem = fb.Problem(lambda p, x: p["w"] * x + p["shift"], np.ones(1), np.zeros(1))
    params = {"w": 0.5, "shift": 1.0}
    problem.check(params)
    assert problem.n_parameters(params) == 2
    assert float(problem.gradient(params)["shift"]) == 1.5
    np.testing.assert_allclose(fb.curvature.extreme_eigenvalues(problem, params).largest[0], 2.0, rtol=1e-6)


def descend(method=FLOW, **changes):
    return fb.descend(PROBLEM, method, START, **({"steps": 3, "step_size": 0.1} | changes))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: descend(observe=[lambda p, w: 1, lambda p, w: 2]), UnknownNameError),
        (lambda: descend(observe={"s": fb.curvature.Sharpness}), UnknownNameError),
        (lambda: descend(steps=10**9), MemoryBudgetError),
        (lambda: descend(lambda problem, params: params), fb.errors.FlowError),
        (lambda: descend(stop=fb.Stop(when={"v": lambda p, w, t: w > 0})), fb.errors.ShapeError),
        (lambda: fb.Stop(when={"x": 3}), UnknownNameError),
        (lambda: fb.Problem(lambda w, x: w, np.ones(1), np.ones(1), loss=fb.SquaredError), fb.errors.ParameterError),
        (lambda: fb.Problem(lambda w, x: w * x + 1j, np.ones(1), np.ones(1)).check(np.ones(1)), fb.errors.ApplyError),
        (lambda: fb.curvature.extreme_eigenvalues(PROBLEM, jnp.ones(2) * 1j), fb.errors.ParameterError),
    ],
)
def test_more_bad_input(call, error):
    with pytest.raises(error) as caught:
        call()
    assert all([caught.value.given, caught.value.needed, caught.value.fix])


def test_multisteps_is_an_optimiser_too():
    run = fb.descend(PROBLEM, optax.MultiSteps(optax.sgd(0.5), 2), START, steps=4)
    np.testing.assert_allclose(run.params[:, 0], [1, 1, 0.5, 0.5, 0.25])
