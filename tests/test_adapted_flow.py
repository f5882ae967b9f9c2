"""The adapted flow and its family against the laws that they obey."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.interpolate

import fibration as fb
from adapted import TANH, circle, flat, jacobian, linear, outputs, residuals, tanh_data, tanh_problem
from fibration.flows import Tikhonov, Whitened, stopping_time

SVD = fb.AdaptedFlow(damping=0.0, method="svd")
EXACT = {"rtol": 1e-12, "atol": 1e-15, "method": "dopri8"}
N = 6


@functools.cache
def long_run():
    """Over twelve decades of the cost."""
    problem, params = tanh_problem()
    return problem, fb.integrate(problem, SVD, params, t1=14.0 * N, times=np.linspace(0, 14 * N, 64), **EXACT)


def test_cost_obeys_the_law_over_twelve_decades():
    _, run = long_run()
    assert run.costs[-1] < 1e-12 * run.costs[0]
    np.testing.assert_allclose(run.costs, run.costs[0] * np.exp(-2 * run.times / N), rtol=1e-6)


def test_every_residual_obeys_the_law():
    problem, run = long_run()
    r = residuals(problem, run)
    law = np.exp(-run.times / N)[:, None] * r[0]
    assert np.max(np.abs(r - law)) < 5e-12
    defect = np.abs(r - law) / np.linalg.norm(law, axis=1)[:, None]
    assert np.max(defect) < 1e-6


def test_default_flow_is_undamped_where_there_is_room():
    problem, params = tanh_problem()
    prepared = fb.AdaptedFlow().prepare(problem, params)
    assert prepared.start.damping is None
    assert not prepared.stiff
    np.testing.assert_allclose(flat(prepared(problem, params)), flat(SVD(problem, params)), rtol=1e-9, atol=1e-11)


def test_stopping_time_is_known_beforehand():
    _, run = long_run()
    for tolerance in (1e-3, 1e-6, 1e-10):
        # The cost falls through the tolerance between two saved times, along an exponential.
        measured = np.interp(-np.log(tolerance), -np.log(run.costs), run.times)
        assert measured == pytest.approx(stopping_time(run.costs[0], tolerance, N), rel=1e-3)


def test_stopping_time_of_arrays_and_bad_input():
    times = stopping_time(np.array([1.0, 1e-9]), 1e-6, 4)
    np.testing.assert_allclose(times, [2 * np.log(1e6), 0.0])
    for bad in ((-1.0, 1e-6, 4), (1.0, 0.0, 4), (1.0, 1e-6, np.nan)):
        with pytest.raises(fb.errors.ParameterError):
            stopping_time(*bad)


def test_weights_and_blocks_set_the_rates():
    """x' = −(wᵢ/N)rᵢ in the Euclidean metric, and −rᵢ in that of the scaled residuals."""
    inputs, targets, params = tanh_data()
    weights = np.array([1.0, 2.0, 0.5, 1.0, 1.0, 3.0])
    whole = fb.Problem(TANH, inputs, targets, weights=weights)
    r = np.asarray(whole.outputs(params) - targets).ravel()
    D = jacobian(whole, params)
    np.testing.assert_allclose(D @ flat(SVD(whole, params)), -np.repeat(weights / N, 2) * r, atol=1e-12)
    blocks = fb.stack(
        [fb.Problem(TANH, inputs[:2], targets[:2], weights=weights[:2]), fb.Problem(TANH, inputs[2:], targets[2:])]
    )
    rates = np.repeat([1 / 2, 2 / 2, 1 / 4, 1 / 4, 1 / 4, 1 / 4], 2)
    np.testing.assert_allclose(D @ flat(SVD(blocks, params)), -rates * r, atol=1e-12)
    np.testing.assert_allclose(D @ flat(fb.AdaptedFlow(0.0, "svd", Whitened())(blocks, params)), -r, atol=1e-12)


def test_equal_duplicates_keep_the_law_at_lower_rank():
    inputs, targets, params = tanh_data()
    problem = fb.Problem(TANH, inputs.at[3].set(inputs[1]), targets.at[3].set(targets[1]))
    run = fb.integrate(problem, SVD, params, t1=3.0 * N, times=np.linspace(0, 3 * N, 64), **EXACT)
    assert run.result.code == "completed"
    assert np.linalg.matrix_rank(jacobian(problem, run.final_params)) == 10
    r = residuals(problem, run)
    assert np.max(np.abs(r - np.exp(-run.times / N)[:, None] * r[0])) < 5e-12


def test_conflicting_duplicates_stop_at_the_projection():
    inputs, targets, params = tanh_data()
    problem = fb.Problem(TANH, inputs.at[3].set(inputs[1]), targets)
    with pytest.warns(fb.errors.RankDeficientWarning, match=r"rank 10 of 12 .* Samples 1 and 3 have identical inputs"):
        run = fb.integrate(problem, SVD, params, t1=16.0 * N, times=np.linspace(0, 16 * N, 64), **EXACT)
    limit = float(jnp.sum((targets[1] - targets[3]) ** 2)) / (4 * N)
    law = limit + np.exp(-2 * run.times / N) * (run.costs[0] - limit)
    np.testing.assert_allclose(run.costs, law, rtol=1e-11)
    r, D = residuals(problem, run)[-1], jacobian(problem, run.final_params)
    assert np.linalg.norm(D.T @ r) < 1e-5 * np.linalg.norm(r)
    assert np.linalg.norm(r) > 0.1
    # The Hessian there has rank 10: the critical points fill a manifold of dimension K − 10.
    hessian = jax.hessian(lambda v: problem.cost(jax.flatten_util.ravel_pytree(params)[1](v)))(flat(run.final_params))
    values = np.linalg.eigvalsh(np.asarray(hessian))
    assert np.sum(values > 1e-4 * values[-1]) == 10
    assert np.max(np.abs(values[:72])) < 1e-4 * values[-1]


def test_linear_model_underparametrised():
    rng = np.random.default_rng(0)
    B, y = rng.normal(size=(9, 4)), rng.normal(size=9)
    problem, best = linear(B, y), 0.5 * np.linalg.norm(y - B @ np.linalg.lstsq(B, y)[0]) ** 2
    with pytest.warns(fb.errors.RankDeficientWarning, match="rank 4 of 9"):
        run = fb.integrate(problem, SVD, np.ones(4), t1=5.0, **EXACT)
    np.testing.assert_allclose(run.costs - best, np.exp(-2 * run.times) * (run.costs[0] - best), rtol=2e-9)


@pytest.mark.parametrize("radius", [0.4, 2.5])
def test_circle_closed_form(radius):
    problem = fb.Problem(circle, jnp.ones((1, 1)), jnp.array([[radius, 0.0]]))
    with pytest.warns(fb.errors.RankDeficientWarning):
        run = fb.integrate(problem, SVD, jnp.array(2.0), t1=4.0, **EXACT)
    np.testing.assert_allclose(run.params, 2 * np.arctan(np.tan(1.0) * np.exp(-radius * run.times)), atol=1e-10)


@pytest.mark.slow
def test_underparametrised_network_projects_and_is_invariant():
    """x' = −P∇C, monotone cost C₀exp(−(2/N)∫cos²φ), and no dependence on the parametrisation."""
    apply, params = fb.networks.mlp((2, 3, 1), "tanh", key=jax.random.key(9))
    inputs = jax.random.normal(jax.random.key(6), (40, 2))
    teacher = fb.networks.mlp((2, 3, 1), "tanh", key=jax.random.key(16))[1]
    targets = jax.vmap(lambda x: apply(teacher, x))(inputs) + 0.1 * jnp.sin(9 * inputs[:, :1])
    problem = fb.Problem(apply, inputs, targets)
    D, r = jacobian(problem, params), np.asarray(problem.outputs(params) - targets).ravel()
    velocity = flat(SVD(problem, params))
    projected = D @ np.linalg.lstsq(D, r)[0] / 40
    np.testing.assert_allclose(D @ velocity, -projected, atol=1e-12)
    with pytest.warns(fb.errors.RankDeficientWarning, match=r"rank 13 of 40 .*13 parameters for 40 outputs"):
        run = fb.integrate(problem, SVD, params, t1=8.0, times=np.linspace(0, 8, 81), **EXACT)
    assert run.result.code == "completed"
    assert np.all(np.diff(run.costs) < 0)
    cosines = []
    for row in range(81):
        here = jax.tree.map(lambda leaf, i=row: leaf[i], run.params)
        D, r = jacobian(problem, here), np.asarray(problem.outputs(here) - targets).ravel()
        cosines.append(np.linalg.norm(D @ np.linalg.lstsq(D, r)[0]) ** 2 / np.linalg.norm(r) ** 2)
    integral = scipy.interpolate.CubicSpline(run.times, cosines).antiderivative()(run.times)
    np.testing.assert_allclose(run.costs, run.costs[0] * np.exp(-2 / 40 * integral), rtol=1e-8)
    # The same flow in other coordinates, θ = Aφ.
    rng = np.random.default_rng(1)
    A = rng.normal(size=(13, 13)) + 4 * np.eye(13)
    unravel = jax.flatten_util.ravel_pytree(params)[1]
    other = fb.Problem(lambda phi, x: apply(unravel(A @ phi), x), inputs, targets)
    with pytest.warns(fb.errors.RankDeficientWarning):
        there = fb.integrate(other, SVD, np.linalg.solve(A, flat(params)), t1=8.0, times=[0.0, 8.0], **EXACT)
    np.testing.assert_allclose(A @ there.params[-1], flat(run.final_params), atol=1e-7)


@pytest.mark.slow
def test_overparametrised_outputs_are_invariant_and_parameters_are_not():
    problem, params = tanh_problem()
    _, run = long_run()
    scales = jnp.exp(jax.random.normal(jax.random.key(3), (82,)))
    vector, unravel = jax.flatten_util.ravel_pytree(params)
    other = fb.Problem(lambda phi, x: TANH(unravel(scales * phi), x), problem.inputs, problem.targets)
    there = fb.integrate(other, SVD, vector / scales, t1=14.0 * N, times=[0.0, 7.0, 14.0 * N], **EXACT)
    np.testing.assert_allclose(outputs(other, there)[::2], outputs(problem, run)[[0, -1]], atol=1e-10)
    apart = flat(run.final_params) - np.asarray(scales) * there.params[-1]
    assert np.linalg.norm(apart) > 0.05 * np.linalg.norm(flat(run.final_params) - flat(params))


def test_default_damping_is_on_without_room_and_frozen():
    rng = np.random.default_rng(0)
    problem = linear(rng.normal(size=(3, 4)), np.ones(3))
    prepared = fb.AdaptedFlow().prepare(problem, np.ones(4))
    sigma = np.linalg.svd(np.asarray(problem.inputs[0]), compute_uv=False)
    assert float(prepared.start.damping) == pytest.approx(1e-6 * sigma[0] ** 2, rel=0.1)
    assert prepared.conditions(problem) == {}
    for damping, value in ((0.5, 0.5), (Tikhonov(relative=0.1, absolute=0.2), 0.1 * sigma[0] ** 2 + 0.2)):
        flow = fb.AdaptedFlow(damping=damping, method="svd").prepare(problem, np.ones(4))
        assert float(flow.start.damping) == pytest.approx(value)
        D, r = np.asarray(problem.inputs[0]), np.asarray(problem.outputs(np.ones(4))).ravel() - 1
        np.testing.assert_allclose(
            flow(problem, jnp.ones(4)), -D.T @ np.linalg.solve(D @ D.T + value * np.eye(3), r), rtol=1e-10
        )


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_interpolated_family_has_its_modes(alpha):
    rng = np.random.default_rng(2)
    B, y = rng.normal(size=(4, 9)), rng.normal(size=4)
    u, sigma, _ = np.linalg.svd(B)
    problem = linear(B, y)
    flow = fb.InterpolatedFlow(alpha, scale=0.5, damping=0.0, method="svd")
    run = fb.integrate(problem, flow, np.ones(9), t1=2.0, times=np.linspace(0, 2, 5), **EXACT)
    modes = (outputs(problem, run) - y) @ u
    rates = alpha + (1 - alpha) * 0.5 * sigma**2
    np.testing.assert_allclose(modes, np.exp(-np.outer(run.times, rates)) * modes[0], atol=1e-10)
    if alpha == 0:
        np.testing.assert_allclose(flow(problem, jnp.ones(9)), 0.5 * fb.GradientFlow()(problem, jnp.ones(9)))


def test_interpolated_family_shares_its_equilibria():
    inputs, targets, _ = tanh_data()
    problem, params = fb.Problem(TANH, inputs.at[3].set(inputs[1]), targets), tanh_data()[2]
    with pytest.warns(fb.errors.RankDeficientWarning):
        run = fb.integrate(problem, SVD, params, t1=30.0 * N, times=np.linspace(0, 30 * N, 64), **EXACT)
    for alpha in (0.0, 0.5, 1.0):
        flow = fb.InterpolatedFlow(alpha, damping=0.0, method="svd")
        assert np.linalg.norm(flat(flow(problem, params))) > 0.01
        assert np.linalg.norm(flat(flow(problem, run.final_params))) < 1e-9


@pytest.mark.parametrize(
    "call",
    [
        lambda: fb.AdaptedFlow(damping=-1.0),
        lambda: fb.AdaptedFlow(damping="often"),
        lambda: fb.AdaptedFlow(damping=[1.0]),
        lambda: fb.AdaptedFlow(method="magic"),
        lambda: fb.AdaptedFlow(on_rank_loss="ignore"),
        lambda: fb.InterpolatedFlow(1.5),
        lambda: fb.InterpolatedFlow(0.5, scale=0.0),
        lambda: Tikhonov(relative=np.inf),
        lambda: fb.PathFlow(feedback=-1.0),
    ],
)
def test_bad_arguments(call):
    with pytest.raises(fb.errors.FibrationError):
        call()
