"""What broke once: open orbits at long times, extreme scales, traced and single-precision chains, odd arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fibration as fb
from chains import chain, distance, norm
from fibration.errors import (
    ApplyError,
    ConditioningWarning,
    NonFiniteDataError,
    ParameterError,
    ShapeError,
    UnknownNameError,
)

B = fb.balance

# A chain 2-3-3-2 along whose induced flow W_2 becomes singular at t = 0.5: the orbit is left in finite time.
LEAVES = [
    np.array([[-0.37760501, 2.04277161], [0.646703, 0.66306337], [-0.51400637, -1.64807517]]),
    np.array(
        [
            [0.16746474, 0.10901409, -1.22735205],
            [-0.68322666, -0.07204368, -0.94475162],
            [-0.09826997, 0.09548303, 0.03558624],
        ]
    ),
    np.array([[-0.50629166, 0.59374807, 0.89116695], [0.3208483, -0.81823023, 0.73165228]]),
]


def check_law(Ws, t, **options):
    run = B.flow(Ws, t, **options)
    moments = run.observed["moment_map"]
    assert run.result.code == "completed"
    np.testing.assert_allclose(moments, np.exp(-2 * run.times)[:, None] * moments[0], atol=1e-10 * norm(Ws) ** 2)
    assert run.observed["drift"].max() < 1e-13
    return run


def test_the_induced_flow_passes_where_the_orbit_is_left():
    run = check_law(LEAVES, 11.0)
    conditions = [np.linalg.cond(W) for W in run.params[1][:8]]
    assert max(conditions) > 20  # near t = 0.5
    partly = B.balanced(LEAVES, strength=0.9)
    for before, after in zip(B.imbalance(LEAVES), B.imbalance(partly), strict=True):
        np.testing.assert_allclose(after, 0.1 * before, atol=1e-13)


@pytest.mark.parametrize("widths", [(2, 4, 4, 2), (4, 2, 3, 3, 4)])
def test_open_orbits_at_long_times(widths):
    for seed in range(6):
        run = check_law(chain(seed, widths), 15.0)
        assert run.stats["steps"] < 200


def test_the_flow_of_an_open_orbit_against_projections():
    # W' = −(W projected on the tangent space of the orbit), by dense least squares and steps of scipy
    import scipy.integrate

    def field(t, w):
        Ws = [w[:6].reshape(3, 2), w[6:15].reshape(3, 3), w[15:].reshape(2, 3)]
        columns = []
        for k in range(18):
            xi = np.zeros(18)
            xi[k] = 1
            xi = xi.reshape(2, 3, 3)
            motion = [xi[0] @ Ws[0], xi[1] @ Ws[1] - Ws[1] @ xi[0], -Ws[2] @ xi[1]]
            columns.append(np.concatenate([M.ravel() for M in motion]))
        L = np.array(columns).T
        return -L @ np.linalg.lstsq(L, w, rcond=None)[0]

    start = np.concatenate([W.ravel() for W in LEAVES])
    exact = scipy.integrate.solve_ivp(field, (0, 0.4), start, "DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
    run = B.flow(LEAVES, 0.4, times=[0.4], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(np.concatenate([W[-1].ravel() for W in run.params]), exact, atol=1e-8)


def test_a_lora_start_survives_rebalancing():
    rng = np.random.default_rng(0)
    problem = B.factored(B.regression(rng.normal(size=(20, 3)), rng.normal(size=(20, 2))))
    start = [jnp.asarray(rng.normal(size=(4, 3))), jnp.zeros((2, 4))]
    schedule = optax.linear_schedule(0.0, 0.1, 10)  # the first update is zero
    run = fb.descend(problem, B.rebalance(optax.sgd(schedule)), start, steps=30)
    assert run.costs[-1] < run.costs[0] - 1e-3
    for V, W in zip(jax.jit(B.balanced)(start), start, strict=True):
        np.testing.assert_array_equal(V, W)


def test_measurements_refuse_a_transposed_matrix():
    problem = B.sensing(np.arange(12.0).reshape(2, 2, 3), [1.0, 2.0])
    with pytest.raises(ApplyError, match="check for a transpose"):
        fb.descend(problem, optax.sgd(0.001), jnp.ones((3, 2)), steps=2)
    with pytest.raises(ParameterError, match="real A_k"):
        B.sensing(1j * np.ones((1, 2, 2)), [1.0])


def test_scales_that_squares_cannot_hold():
    large = [2e10 * jnp.eye(3, dtype=jnp.float32), 1e10 * jnp.eye(3, dtype=jnp.float32)]
    np.testing.assert_allclose(jax.jit(B.balanced)(large)[0], np.sqrt(2) * 1e10 * np.eye(3), rtol=1e-5)
    assert B.orbit([np.eye(2) * 1e100] * 2).rank == 2
    assert B.excess([np.eye(2) * 1e100] * 2) <= 1e186
    with pytest.raises(NonFiniteDataError, match="overflows"):
        B.orbit([np.eye(2) * 1e100] * 5)
    for unit in (1e39, 1e-82):
        found = B.kempf_ness([np.array([[unit]]), np.array([[4 * unit]])])
        assert found.converged
        np.testing.assert_allclose([W.item() for W in found.params], [2 * unit] * 2, rtol=1e-12)
    half = B.balanced([np.array([[1e-90]]), np.array([[4e-90]])], strength=0.5)
    np.testing.assert_allclose(B.imbalance([1e90 * W for W in half])[0], 7.5, rtol=1e-12)
    run = B.flow([np.array([[1e-70]]), np.array([[4e-70]])], 1.0)
    np.testing.assert_allclose(run.observed["moment_map"][-1], np.exp(-2) * -15e-140, rtol=1e-7)
    far = B.kempf_ness([np.array([[1e18]]), np.array([[1e-18]])])
    assert not far.converged
    assert "similar sizes" in far.message


def test_single_precision_where_double_is_allowed():
    Ws = [2 * jnp.eye(2, dtype=jnp.float32), jnp.eye(2, dtype=jnp.float32)]
    assert B.dual_multiplier(Ws).dtype == jnp.float32
    run = B.fast_slow(Ws, lambda X: X - 1, 0.1, 1.0, rtol=1e-4)
    np.testing.assert_allclose(run.observed["moment_map"][-1], 0, atol=1e-4)
    learned = fb.solvers.solve(B.LearningFlow(lambda X: X - 1, 2), Ws[0] / 4, 0.5, rtol=1e-4)
    assert learned.result.code == "completed"


def test_one_traced_factor_is_enough():
    W = jnp.diag(jnp.array([2.0, 3.0]))
    gradient = jax.grad(lambda W: B.excess([W, jnp.eye(2)]))(W)
    np.testing.assert_allclose(gradient, W - jnp.eye(2), atol=1e-12)  # of ½|W|² + ½|I|² − nuclear norm
    batch = jax.vmap(lambda W: B.excess([W, np.eye(2)]))(jnp.stack([W, 2 * W]))
    # ½(4 + 9) + 1 − 5, and ½(16 + 36) + 1 − 10
    np.testing.assert_allclose(batch, [2.5, 17.0], rtol=1e-12)


def test_deep_chains_are_cut_unless_told_otherwise():
    Ws = [np.diag([1.0, 0.4])] * 50  # balanced, but 0.4^50 is far below rounding
    assert B.orbit(Ws).rank == 1
    assert B.orbit(Ws, rtol=0.0).rank == 2
    assert abs(B.excess(Ws, rtol=0.0)) < 1e-11
    np.testing.assert_allclose(B.excess(Ws), 50 / 2 * 0.16, rtol=1e-12)
    assert distance(B.balanced(Ws, rtol=0.0), Ws) < 1e-10
    with pytest.raises(fb.errors.RankLossError, match=r"1 of W_4, ….*kempf_ness"):
        B.balanced(Ws)
    assert B.kempf_ness(Ws).converged


def test_odd_arguments_are_named():
    with pytest.raises(ParameterError, match='use method="laplace"'):
        B.log_prior(np.diag([2.0, 1.0]), 2, 1e-10, "quadrature")
    for A, C, times in (
        (np.ones((2, 3)), np.eye(3), [1.0]),
        (np.eye(2), np.eye(3), [1.0]),
        (np.eye(2), np.eye(2), -1.0),
    ):
        with pytest.raises(ShapeError):
            B.riccati_path(A, C, times)
    with pytest.raises(ParameterError, match="Hermitian"):
        B.riccati_path(np.eye(2), np.diag([1.0, -1.0]), [1.0])
    with pytest.raises(ParameterError, match="Hermitian"):
        B.riccati_path(np.array([[1.0, 1.0], [0.0, 1.0]]), np.eye(2), [1.0])
    assert B.riccati_path(np.eye(2), np.eye(2), []).shape == (0, 2, 2)
    with pytest.warns(ConditioningWarning, match="condition number"):
        B.riccati_path(np.diag([1.0, 1e-12]), np.eye(2), [1.0])
    with pytest.raises(ParameterError, match="widths of at least 2"):
        B.squared_moment_rates([1.0, 0.4], 2, [1])
    with pytest.raises(ParameterError, match="positive numbers"):
        B.squared_moment_rates([1.0, -0.4], 2)
    with pytest.raises(ParameterError, match=r"\[0, 1\)"):
        B.balanced([np.eye(2)] * 2, rtol=2.0)
    with pytest.raises(UnknownNameError, match="gauge"):
        B.rebalance(optax.sgd(0.1), gauge="foo")
