"""`fb.optim.minimize`: damped adapted steps on full batches."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import fibration as fb


def tanh_net(params, x):
    w1, b1, w2 = params
    return w2 @ jnp.tanh(w1 @ x + b1)


def linear(w, x):
    return w @ x


def fitting(samples, hidden=5, outputs=2, seed=0, dtype=float):
    """A tanh network of 2 inputs on random targets, and its parameters."""
    rng = np.random.default_rng(seed)
    params = (rng.normal(size=(hidden, 2)), rng.normal(size=hidden), rng.normal(size=(outputs, hidden)))
    data = rng.normal(size=(samples, 2)), rng.normal(size=(samples, outputs))
    cast = jax.tree.map(lambda a: jnp.asarray(a, dtype), (params, data))
    return fb.Problem(tanh_net, *cast[1]), cast[0]


def dense(problem, params):
    """The residuals, their Jacobian by forward differences in JAX, and the unravelling."""
    flat, unravel = ravel_pytree(params)

    def rho(v):
        return problem.residuals(unravel(v))

    return np.asarray(flat), rho, np.asarray(jax.jacfwd(rho)(flat))


@pytest.mark.parametrize("samples", [4, 30], ids=["wide", "tall"])
@pytest.mark.parametrize("acceleration", [False, True])
def test_one_step_is_that_of_dense_algebra(samples, acceleration):
    problem, params = fitting(samples)
    run = fb.optim.minimize(problem, params, 1, 0, damping=0.3, acceleration=acceleration)
    theta, rho, jacobian = dense(problem, params)
    lam, r = run.stats["damping"][1], np.asarray(rho(theta))
    sigma = np.linalg.norm(jacobian, 2)
    if run.stats["rejected"] == 0:
        np.testing.assert_allclose(lam, 0.3 * sigma**2, rtol=0.02)  # σ_max is an estimate
    inverse = np.linalg.solve(jacobian.T @ jacobian + lam * np.eye(theta.size), jacobian.T)
    p = -inverse @ r
    a = 0
    if acceleration:
        second = jax.jvp(lambda v: jax.jvp(rho, (v,), (p,))[1], (theta,), (p,))[1]
        a = -0.5 * inverse @ np.asarray(second)
        a = a if 2 * np.linalg.norm(a) <= 0.75 * np.linalg.norm(p) else 0 * a
    np.testing.assert_allclose(ravel_pytree(run.final_params)[0], theta + p + a, rtol=1e-11, atol=1e-13)
    after = 0.5 * np.sum(np.asarray(rho(theta + p + a)) ** 2)
    promised = 0.5 * r @ r - 0.5 * np.sum((r + jacobian @ p) ** 2)
    np.testing.assert_allclose(run.stats["ratio"][1], (0.5 * r @ r - after) / promised, rtol=1e-9)


def test_a_weighted_stack_is_one_least_squares_problem():
    problem, params = fitting(4)
    weights = jnp.array([0.0, 1.0, 2.0, 3.0])
    stacked = fb.stack([fb.Problem(tanh_net, problem.inputs, problem.targets, weights=weights), problem])
    run = fb.optim.minimize(stacked, params, 1, 0, damping=0.3, acceleration=False)
    theta, rho, jacobian = dense(stacked, params)
    lam = run.stats["damping"][1]
    p = -np.linalg.solve(jacobian.T @ jacobian + lam * np.eye(theta.size), jacobian.T @ np.asarray(rho(theta)))
    np.testing.assert_allclose(ravel_pytree(run.final_params)[0], theta + p, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("method", ["svd", "lsmr"])
def test_every_method_of_solution_takes_the_same_steps(method):
    problem, params = fitting(4)
    runs = [fb.optim.minimize(problem, params, 3, 0, method=name, damping=0.1) for name in ("auto", method)]
    ends = [ravel_pytree(run.params)[0] for run in runs]
    # σ_max is estimated in most, which moves λ.
    np.testing.assert_allclose(ends[1], ends[0], rtol=2e-2, atol=2e-2)
    assert runs[1].costs[-1] < 0.5 * runs[1].costs[0]


def test_it_fits_to_the_tolerance_and_says_so():
    problem, params = fitting(6, hidden=8)
    run = fb.optim.minimize(problem, params)
    assert (run.result.code, run.result.failed) == ("cost_below", False)
    assert run.costs[-1] < 1e-20 < run.costs[-2]
    assert run.stats["steps"] == len(run.times) - 1 < 60
    for name in ("damping", "ratio", "trials"):
        assert len(run.stats[name]) == len(run.times)
    assert sum(run.stats["trials"]) == run.stats["steps"] + run.stats["rejected"]
    assert np.all(np.diff(run.costs) < 0)
    table = run.to_xarray()
    assert table["damping"].dims == ("time",)
    searched = fb.optim.minimize(problem, params, line_search=True)
    assert searched.result.code == "cost_below"


@pytest.mark.parametrize("a", [2.5, 3.0, 5.0, 20.0])
def test_a_circle_with_its_target_outside(a):
    """Gauss–Newton steps diverge from θ = 0 where the curvature times the residual, a − 1, exceeds 1."""
    problem = fb.Problem(_circle, np.zeros((1, 1)), np.array([[a, 0.0]]))
    run = fb.optim.minimize(problem, jnp.array(1.0), 100, 0)
    assert run.result.code == "stationary"
    assert "orthogonal" in run.result.message
    np.testing.assert_allclose(np.sin(run.final_params), 0, atol=1e-7)
    np.testing.assert_allclose(run.costs[-1], 0.5 * (a - 1) ** 2, rtol=1e-14)
    assert run.stats["steps"] + run.stats["rejected"] <= 40
    assert np.all(np.diff(run.costs) <= 0)


def _circle(theta, x):
    return jnp.stack([jnp.cos(theta), jnp.sin(theta)])


@pytest.mark.parametrize("shape", [(20, 3), (3, 20)], ids=["over", "under"])
def test_linear_models_end_at_least_squares(shape):
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=shape), rng.normal(size=(shape[0], 1))
    run = fb.optim.minimize(fb.Problem(linear, inputs, targets), jnp.zeros((1, shape[1])), 50, 1e-28, damping=1e-8)
    w = np.linalg.lstsq(inputs, targets, rcond=None)[0]
    # From zero, steps in range Dᵀ lead to the solution of least norm.
    np.testing.assert_allclose(run.final_params, w.T, atol=1e-9)
    assert run.result.code == ("stationary" if shape[0] > shape[1] else "cost_below")
    assert run.stats["steps"] <= 6
    np.testing.assert_allclose(run.stats["ratio"][1], 1, rtol=1e-12)


def test_duplicated_inputs_with_different_targets():
    """C∞ = |y_a − y_b|²/(4N) for a pair (spec 2.4)."""
    problem, params = fitting(6, hidden=12)
    inputs = problem.inputs.at[5].set(problem.inputs[2])
    run = fb.optim.minimize(fb.Problem(tanh_net, inputs, problem.targets), params, 200)
    gap = float(jnp.sum((problem.targets[5] - problem.targets[2]) ** 2))
    assert (run.result.code, run.result.failed) == ("stationary", False)
    np.testing.assert_allclose(run.costs[-1], gap / 24, rtol=1e-12)


def _cusp(w, x):
    return 1 + jnp.abs(w)


def test_a_kink_is_a_stall_and_a_failure():
    problem = fb.Problem(_cusp, np.zeros((1, 1)), np.zeros((1, 1)))
    run = fb.optim.minimize(problem, jnp.array(0.7), 500)
    assert (run.result.code, run.result.failed) == ("stalled", True)
    with pytest.raises(fb.errors.DivergedError, match="smoother") as caught:
        run.raise_if_failed()
    assert caught.value.trajectory is run


def test_residuals_that_are_not_finite():
    problem = fb.Problem(lambda w, x: jnp.log(w) * x, np.ones((1, 1)), np.ones((1, 1)))
    run = fb.optim.minimize(problem, jnp.array(-1.0), 5)
    assert (run.result.code, run.stats["steps"]) == ("nonfinite", 0)
    # A trial beyond the domain is rejected, and the run goes on.
    run = fb.optim.minimize(problem, jnp.array(20.0), 50, damping=1e-9)
    np.testing.assert_allclose(run.final_params, np.e, rtol=1e-9)
    assert run.stats["rejected"] > 0


@hypothesis.settings(max_examples=12, derandomize=True)
@hypothesis.given(
    shape=st.sampled_from([(3, 4, 1), (12, 3, 2), (7, 6, 3)]),
    seed=st.integers(0, 10**6),
    log_damping=st.floats(-8, 4),
)
def test_costs_never_rise(shape, seed, log_damping):
    samples, hidden, outputs = shape
    problem, params = fitting(samples, hidden, outputs, seed)
    with jax.enable_x64(True):
        run = fb.optim.minimize(problem, params, 15, damping=10.0**log_damping)
    assert np.all(np.diff(run.costs) <= 0)
    assert run.result.code in ("completed", "cost_below", "stationary")
    assert all(ratio > 0 for ratio in run.stats["ratio"][1:])


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    problem, params = fitting(12)
    whole = fb.optim.minimize(problem, params, 20)
    options = fb.Options(max_steps=7)
    store = fb.Checkpoint(tmp_path, every=0.0)
    cut = fb.optim.minimize(problem, params, 20, checkpoint=store, options=options)
    assert cut.result.code == "max_steps"
    again = fb.optim.minimize(problem, params, 20, checkpoint=store)
    assert again.stats["resumed_at"] > 0
    for name in ("costs", "times"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
    assert again.stats["damping"] == whole.stats["damping"]
    with pytest.raises(fb.errors.CheckpointMismatchError):
        fb.optim.minimize(problem, params, 20, damping=0.5, checkpoint=store)


def test_results_do_not_depend_on_how_the_run_is_cut():
    problem, params = fitting(12)
    runs = [
        fb.optim.minimize(problem, params, 20, options=fb.Options(chunk_seconds=seconds, buffer_bytes=size))
        for seconds, size in ((0.3, 2**26), (1e-6, 1))
    ]
    np.testing.assert_array_equal(runs[0].costs, runs[1].costs)
    sparse = fb.optim.minimize(problem, params, 20, save_every=8, options=fb.Options(save="last"))
    np.testing.assert_array_equal(sparse.times, [0, 8, 16, 20])
    np.testing.assert_array_equal(sparse.costs, runs[0].costs[[0, 8, 16, 20]])


def test_observers_stops_and_constant_leaves():
    problem, (w1, b1, w2) = fitting(6)

    def apply(params, x):
        return params["scale"] * tanh_net(params["net"], x)

    params = {"net": (w1, b1, w2), "scale": 2, "name": None}
    stop = fb.Stop(cost_below=1e-3, when={"never": lambda problem, params, time: time < -1})
    run = fb.optim.minimize(
        fb.Problem(apply, problem.inputs, problem.targets), params, stop=stop, observe={"cost": lambda p, w: p.cost(w)}
    )
    assert run.result.code == "cost_below"
    assert run.costs[-1] < 1e-3 < run.costs[-2]
    np.testing.assert_allclose(run.observed["cost"], run.costs, rtol=1e-14)
    assert run.final_params["scale"] == 2


def test_float32_stops_at_its_own_rounding():
    problem, params = fitting(6, hidden=8, dtype=np.float32)
    run = fb.optim.minimize(problem, params, 200)
    assert run.result.code == "stationary"
    assert run.costs[-1] < 1e-11
    assert run.final_params[0].dtype == np.float32


def test_bad_input():
    problem, params = fitting(4)
    classes = fb.Problem(tanh_net, problem.inputs, np.array([0, 1, 1, 0]), loss=fb.CrossEntropy(n_classes=2))
    for arguments, options, error, words in (
        ((classes, params), {}, fb.errors.ParameterError, "SquaredError"),
        ((problem, jax.tree.map(lambda a: a + 0j, params)), {}, Exception, "complex|real"),
        ((problem, params), {"damping": 0.0}, fb.errors.ParameterError, "damping"),
        ((problem, params), {"steps": 0}, fb.errors.StepSizeError, "steps"),
        ((problem, params), {"tolerance": -1.0}, fb.errors.ParameterError, "tolerance"),
        ((problem, params), {"method": "cholesk"}, fb.errors.UnknownNameError, "cholesky"),
        ((problem, params[:2]), {}, fb.errors.ApplyError, "apply"),
        ((problem, params), {"options": fb.Options(memory_budget=1000)}, fb.errors.MemoryBudgetError, "save"),
    ):
        with pytest.raises(error, match=words):
            fb.optim.minimize(*arguments, **options)
