"""Linear systems: the flows to balanced realisations, and the realisation with the smallest matrices."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import fibration as fb
from fibration import trees
from fibration.balance import _systems as S
from fibration.balance._systems._euclidean import StateAction, reachable
from fibration.errors import (
    ConditioningWarning,
    NonFiniteDataError,
    RankLossError,
    ShapeError,
    UnknownNameError,
    UnstableSystemError,
)
from linear_systems import frequencies, random_system, transfer

FINE = {"rtol": 1e-11, "atol": 1e-13}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def at(run, k):
    return [M[k] for M in run.params]


@pytest.mark.parametrize(("discrete", "field"), [(False, "real"), (True, "complex")])
def test_the_induced_flow_has_one_rate(rng, discrete, field):
    system, dt = random_system(rng, 5, discrete=discrete, field=field), discrete or None
    run = S.balancing_flow(*system, t=3.0, times=[0.0, 1.0, 3.0], dt=dt, **FINE)
    moments = run.observed["moment_map"]
    start = np.abs(moments[0]).max()
    for time, moment in zip(run.times, moments, strict=True):
        np.testing.assert_allclose(moment, np.exp(-2 * time) * moments[0], rtol=0, atol=2e-13 * start)
    hsv = S.hankel_singular_values(*system, dt)
    assert run.observed["regularizer"][-1] - hsv.sum() <= np.exp(-6) * (run.observed["regularizer"][0] - hsv.sum())
    for s in frequencies(rng, discrete):
        H = transfer(*system, s)
        np.testing.assert_allclose(transfer(*at(run, 2), s), H, rtol=0, atol=1e-12 * np.abs(H).max())
    Wc, Wo = S.gramians(*at(run, 2), dt)
    np.testing.assert_allclose((Wc - Wo).ravel(), moments[2], rtol=0, atol=1e-12 * start)


@pytest.mark.parametrize("field", ["real", "complex"])
def test_the_normal_flow_has_a_closed_form(rng, field):
    system = random_system(rng, 4, field=field)
    Wc, Wo = S.gramians(*system)
    times = np.array([0.0, 0.3, 2.0])
    run = S.balancing_flow(*system, t=2.0, kind="normal", times=times, method="dopri8", **FINE)
    T = run.observed["transformation"]
    P = fb.balance.riccati_path(Wc, Wo, times / 2)
    np.testing.assert_allclose(T.conj().swapaxes(1, 2) @ T, P, rtol=0, atol=1e-9 * np.abs(P).max())
    for s in frequencies(rng, False):
        H = transfer(*system, s)
        np.testing.assert_allclose(transfer(*at(run, 2), s), H, rtol=0, atol=1e-12 * np.abs(H).max())


@pytest.mark.parametrize("kind", ["induced", "normal"])
def test_the_velocity_in_state_space(rng, kind):
    A, B, C = random_system(rng, 4)
    h = 1e-4
    run = S.balancing_flow(A, B, C, t=2 * h, kind=kind, times=[0.0, h, 2 * h], method="dopri8", **FINE)
    Wc, Wo = S.gramians(A, B, C)
    if kind == "normal":
        xi = (Wc - Wo) / 2
    else:  # as Kronecker products
        n = len(A)
        xi = np.linalg.solve(np.kron(np.eye(n), Wc.T) + np.kron(Wo, np.eye(n)), (Wc - Wo).ravel()).reshape(n, n)
    for path, expected in zip(run.params, (-(xi @ A - A @ xi), -xi @ B, C @ xi), strict=True):
        velocity = (-3 * path[0] + 4 * path[1] - path[2]) / (2 * h)
        np.testing.assert_allclose(velocity, expected, atol=1e-5 * np.abs(expected).max())


def test_the_normal_flow_ends_at_the_slowest_rate():
    # Two states that do not mix: log Λ falls like exp(−2 σ t), the slower the smaller σ is.
    A, B, C = np.diag([-1.0, -1.0]), np.diag([2.0, 1.0]), np.diag([1.0, 0.5])
    hsv = S.hankel_singular_values(A, B, C)
    np.testing.assert_allclose(hsv, [1.0, 0.25], rtol=1e-14)
    run = S.balancing_flow(A, B, C, t=16.0, kind="normal", times=[12.0, 16.0], method="dopri8", **FINE)
    moments = run.observed["moment_map"][:, 3]
    assert abs(np.log(moments[0] / moments[1]) / 4 - 2 * hsv[1]) < 1e-3


def test_flows_of_systems_that_are_not_minimal():
    A, B, C = np.diag([-1.0, -2.0]), np.array([[1.0], [0.0]]), np.array([[1.0, 3.0]])
    with pytest.warns(ConditioningWarning, match="1 of 2 states"):
        run = S.balancing_flow(A, B, C, t=1.0, times=[0.0, 1.0], **FINE)
    moments = run.observed["moment_map"]
    np.testing.assert_allclose(moments[1], np.exp(-2) * moments[0], atol=1e-10)


def test_flow_input():
    system = np.diag([-1.0, -2.0]), np.ones((2, 1)), np.ones((1, 2))
    with pytest.raises(UnknownNameError, match="'normal'"):
        S.balancing_flow(*system, kind="norml")
    with pytest.raises(UnstableSystemError):
        S.balancing_flow(-system[0], *system[1:])
    with pytest.raises(ShapeError):
        S.balancing_flow(system[0], system[1], system[1])
    run = S.balancing_flow(S.LinearSystem(*system, None), t=0.5, times=[0.0, 0.2, 0.5], kind="normal")
    assert [M.shape for M in run.params] == [(3, 2, 2), (3, 2, 1), (3, 1, 2)]
    assert np.array_equal(run.params[0][0], system[0])


# The smallest matrices


def euclidean_moment(A, B, C):
    return A @ A.conj().T - A.conj().T @ A + B @ B.conj().T - C.conj().T @ C


@pytest.mark.parametrize("field", ["real", "complex"])
def test_the_state_action(rng, field):
    W, V = ([jnp.asarray(M) for M in random_system(rng, 3, field=field)] for _ in range(2))
    xi = jnp.asarray(random_system(rng, 3, field=field)[0])
    action = StateAction()
    left = sum(np.vdot(b, a).real for a, b in zip(action.infinitesimal(W, xi), V, strict=True))
    assert np.isclose(left, np.vdot(action.adjoint(W, V), xi).real, rtol=1e-12)
    h = 1e-5
    xi = xi + xi.conj().T
    ahead, behind = (action.exponential(sign * h * xi, W) for sign in (1, -1))
    velocity = [(a - b) / (2 * h) for a, b in zip(ahead, behind, strict=True)]
    for found, expected in zip(velocity, action.infinitesimal(W, xi), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-8)
    np.testing.assert_allclose(action.moment_map(W), euclidean_moment(*W), atol=1e-12)
    rough = action.precondition(W, action.moment_map(W), symmetric=True)
    assert trees.dot(rough, action.moment_map(W)) > 0


@pytest.mark.parametrize("field", ["real", "complex"])
def test_euclidean_realization(rng, field):
    A, B, C = random_system(rng, 5, field=field)
    mix = np.eye(5) + 0.4 * rng.normal(size=(5, 5))
    system = mix @ A @ np.linalg.inv(mix), mix @ B, C @ np.linalg.inv(mix)
    found = S.euclidean_realization(*system)
    assert found.converged
    assert found.iterations <= 8
    *matrices, D, dt = found.params
    assert (D.shape, dt) == ((3, 2), None)
    assert np.abs(euclidean_moment(*matrices)).max() < 1e-11
    for s in frequencies(rng, False):
        H = transfer(*system, s)
        np.testing.assert_allclose(transfer(*matrices, s), H, rtol=0, atol=1e-11 * np.abs(H).max())
    assert found.regularizer <= sum(np.linalg.norm(M) ** 2 for M in (A, B, C)) / 2
    # the same from other coordinates, up to a unitary change
    other = S.euclidean_realization(A, B, C)
    assert np.isclose(other.regularizer, found.regularizer, rtol=1e-13)
    for first, second in zip(matrices, other.params, strict=False):
        np.testing.assert_allclose(
            np.linalg.svd(first, compute_uv=False), np.linalg.svd(second, compute_uv=False), rtol=1e-9
        )


def test_euclidean_realization_against_minimisation(rng):
    # neither stable nor marginally so: nothing is asked of the poles
    A, B, C = np.array([[0.0, 5.0], [0.0, 1.0]]), rng.normal(size=(2, 1)), rng.normal(size=(2, 2))

    def length(p):
        T = np.array([[np.exp(p[0]), p[1]], [0.0, np.exp(p[2])]])
        inverse = np.linalg.inv(T)
        return sum(np.linalg.norm(M) ** 2 for M in (T @ A @ inverse, T @ B, C @ inverse)) / 2

    best = scipy.optimize.minimize(length, np.zeros(3), method="BFGS", options={"gtol": 1e-9})
    found = S.euclidean_realization(A, B, C)
    assert np.isclose(found.regularizer, best.fun, rtol=1e-10)
    assert found.regularizer < 0.9 * length(np.zeros(3))


def test_euclidean_realization_of_what_is_not_minimal(rng):
    A, B, C = np.array([[1.0, 1.0], [0.0, 2.0]]), np.array([[1.0], [0.0]]), np.array([[1.0, 1.0]])
    with pytest.raises(RankLossError, match="of 2 states 1 are controllable and 2 observable"):
        S.euclidean_realization(A, B, C)
    with pytest.raises(NonFiniteDataError):
        S.euclidean_realization(A + np.inf, B, C)
    A, B, _ = random_system(rng, 6, m=2)
    assert reachable(A, B) == 6
    A[4:, :4], B[4:] = 0, 0
    Q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert reachable(Q @ A @ Q.T, Q @ B) == 4
    assert reachable(A, 0 * B) == 0


def test_euclidean_realization_gives_back_what_it_was_given(rng):
    system = [M.astype(np.float32) for M in random_system(rng, 3)]
    found = S.euclidean_realization(*system)
    assert found.params.A.dtype == np.float32
    found = S.euclidean_realization(S.LinearSystem(*map(jnp.asarray, system), jnp.ones((3, 2), jnp.float32), True))
    assert isinstance(found.params.C, jnp.ndarray)
    assert found.params.dt is True
    np.testing.assert_array_equal(found.params.D, np.ones((3, 2)))


def test_euclidean_realisations_do_not_depend_on_units():
    rng = np.random.default_rng(1)
    A, b, c = random_system(rng, 4)
    H = transfer(A, b, c, 1.3j)
    for decades in (4, 8):
        d = 10.0 ** np.linspace(-decades, decades, 4)
        found = fb.balance.euclidean_realization(d[:, None] * A / d, d[:, None] * b, c / d)
        assert found.converged
        np.testing.assert_allclose(transfer(*found.params[:3], 1.3j), H, atol=1e-11 * np.linalg.norm(H))
