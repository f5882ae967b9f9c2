"""The certificate of a run: what it measures, and what it does not let pass."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fibration as fb
from adapted import TANH, fold, jacobian, scalar, tanh_data, tanh_problem
from fibration.flows import certificate

EXACT = {"rtol": 1e-11, "atol": 1e-13, "method": "dopri8"}
FLOW = fb.AdaptedFlow(damping=0.0, method="svd")
N = 6


@functools.cache
def conflicting():
    """A duplicated input with other targets: P⊥ is constant, and the outputs leave the straight line."""
    inputs, targets, params = tanh_data()
    return fb.Problem(TANH, inputs.at[3].set(inputs[1]), targets), params


def test_a_clean_run_is_certified_clean():
    problem, params = tanh_problem()
    run = fb.integrate(problem, FLOW, params, t1=4.0 * N, times=np.linspace(0, 4 * N, 49), **EXACT)
    proof = certificate(problem, run, method="svd")
    assert np.max(proof.decay_defect) < 1e-8
    assert np.max(proof.deviation) < 1e-9
    assert np.max(proof.trackability) < 1e-12
    assert np.all(proof.rank == 12)
    sigma = np.linalg.svd(jacobian(problem, params), compute_uv=False)
    assert proof.sigma_min[0] == pytest.approx(sigma[-1])
    assert proof.sigma_max[0] == pytest.approx(sigma[0])
    assert not proof.lipschitz_is_bound
    assert not np.any(proof.certified)  # an estimate certifies nothing
    assert "rank 12 to 12 of 12" in str(proof)
    assert len(proof.table.splitlines()) == 12


def test_deviation_is_explained_by_missing_rank():
    problem, params = conflicting()
    with pytest.warns(fb.errors.RankDeficientWarning):
        run = fb.integrate(problem, FLOW, params, t1=2.0 * N, times=np.linspace(0, 2 * N, 49), **EXACT)
    proof = certificate(problem, run, method="svd")
    assert proof.deviation[-1] > 0.1
    np.testing.assert_allclose(proof.deviation, proof.explained, atol=2e-6)
    assert np.max(proof.unexplained) < 2e-6
    assert proof.worst_sample in (1, 3)
    assert np.all(proof.rank == 10)
    # P⊥r is constant here: half the difference of the targets, in both samples.
    targets = np.asarray(problem.targets)
    lost = np.linalg.norm(targets[1] - targets[3]) / np.sqrt(2)
    np.testing.assert_allclose(proof.trackability, lost / np.sqrt(2 * N * run.costs), rtol=1e-9)


def test_deviation_identity_where_the_range_turns():
    """With K < NQ the projector changes along the way; the identity is exact, the quadrature of fourth order."""
    problem = fb.Problem(
        lambda w, x: jnp.stack([jnp.cos(w * x), jnp.sin(w * x)]),
        jnp.array([1.0, 2.0]),
        jnp.array([[0.4, 0.1], [0.9, 0.9]]),
    )
    with pytest.warns(fb.errors.RankDeficientWarning):
        run = fb.integrate(problem, FLOW, jnp.array(2.0), t1=4.0, times=np.linspace(0, 4, 65), **EXACT)
    proof = certificate(problem, run, method="svd")
    assert proof.deviation[-1] > 0.1
    assert np.max(proof.unexplained) < 1e-5
    half = fb.Trajectory(run.times[::2], run.params[::2], None, {}, run.result)
    assert np.max(proof.unexplained) < np.max(certificate(problem, half, method="svd").unexplained) / 8


class OneIteration(eqx.Module):
    """The lift after one iteration of conjugate gradients: −(|∇ₓC|²/|Dᵀ∇ₓC|²) Dᵀ∇ₓC."""

    def __call__(self, problem, params, time=0.0):
        gradient = problem.gradient(params)
        # |∇ₓC|² = (2/N)C
        factor = 2 / N * problem.cost(params) / fb.trees.norm(gradient) ** 2
        return fb.trees.scale(-factor, gradient)


def test_the_cost_alone_proves_nothing():
    """One iteration instead of a solve keeps the law of the cost exactly, with every residual wrong."""
    problem, params = tanh_problem()
    run = fb.integrate(
        problem, OneIteration(), params, t1=2.0 * N, times=np.linspace(0, 2 * N, 5), rtol=1e-9, method="auto"
    )
    np.testing.assert_allclose(run.costs, run.costs[0] * np.exp(-2 * run.times / N), rtol=1e-6)
    proof = certificate(problem, run, method="svd")
    assert np.all(proof.decay_defect[-1].max() > 0.3)
    assert proof.unexplained[-1] > 0.05


def test_kantorovich_bounds_how_far_parameters_go():
    problem = scalar(fold, 0.3)
    run = fb.integrate(problem, FLOW, jnp.array(0.0), t1=20.0, times=[0.0, 1.0, 20.0], **EXACT)
    proof = certificate(problem, run, lipschitz=1.0, method="svd")
    np.testing.assert_allclose(proof.kantorovich[0], 0.6)
    assert np.all(proof.certified)
    moved = np.abs(run.params - run.params[-1])
    # The bound is met with equality: f'' = −1 everywhere.
    np.testing.assert_allclose(proof.movement[:2], moved[:2], rtol=1e-6)
    assert proof.lipschitz_is_bound
    estimate = certificate(problem, run, method="svd")
    assert estimate.lipschitz == pytest.approx(1.0)


def test_unequal_rates_use_a_length_that_is_still_a_bound():
    inputs, targets, params = tanh_data()
    problem = fb.Problem(TANH, inputs, targets, weights=np.array([1.0, 2.0, 0.5, 1.0, 1.0, 3.0]))
    run = fb.follow(problem, params, 6.0, times=[0.0, 3.0, 6.0], method="svd")
    proof = certificate(problem, run, lipschitz=1.0, method="svd")
    assert np.max(proof.decay_defect) < 1e-8
    r = np.abs(np.asarray(problem.outputs(params) - targets)).sum()
    assert proof.kantorovich[0] == pytest.approx(2 * r / proof.sigma_min[0] ** 2)


def test_bad_input():
    problem, params = tanh_problem()
    run = fb.descend(problem, FLOW, params, step_size=0.1, steps=2)
    with pytest.raises(fb.errors.ParameterError):
        certificate(problem, run, lipschitz=0.0)
    with pytest.raises(fb.errors.TimeSpanError):
        certificate(
            problem, fb.Trajectory(run.times[:1], jax.tree.map(lambda leaf: leaf[:1], run.params), None, {}, run.result)
        )
    classes = fb.Problem(TANH, problem.inputs, np.zeros(6, int), loss=fb.CrossEntropy(2))
    with pytest.raises(fb.errors.ParameterError, match="SquaredError"):
        certificate(classes, run)
