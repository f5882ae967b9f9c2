"""Linear systems: Gramians, Hankel singular values, balanced realisations and truncations."""

import logging

import hypothesis
import numpy as np
import pytest
import scipy.linalg
from hypothesis import strategies as st

import fibration as fb
from fibration.balance import _systems as S
from fibration.errors import ParameterError, UnstableSystemError
from linear_systems import (
    difference,
    exact_hankel_values,
    frequencies,
    infinity_norm,
    random_system,
    transfer,
)
from optional import optional

KINDS = [(discrete, field) for discrete in (False, True) for field in ("real", "complex")]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def same_transfer(first, second, points, rtol=1e-10):
    for s in points:
        one, other = transfer(*first, s), transfer(*second, s)
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * np.abs(one).max())


# Gramians and Hankel singular values


@pytest.mark.parametrize(("discrete", "field"), KINDS)
def test_gramians_against_scipy(rng, discrete, field):
    A, B, C = random_system(rng, 9, discrete=discrete, field=field)
    solve = scipy.linalg.solve_discrete_lyapunov if discrete else scipy.linalg.solve_continuous_lyapunov
    sign = 1 if discrete else -1
    Wc, Wo = S.gramians(A, B, C, dt=discrete or None)
    np.testing.assert_allclose(Wc, solve(A, sign * B @ B.conj().T), rtol=0, atol=1e-12 * np.abs(Wc).max())
    np.testing.assert_allclose(Wo, solve(A.conj().T, sign * C.conj().T @ C), rtol=0, atol=1e-12 * np.abs(Wo).max())
    assert Wc.dtype == A.dtype
    for W in (Wc, Wo):
        assert np.array_equal(W, W.conj().T)
        assert np.linalg.eigvalsh(W)[0] > 0


def test_gramians_in_closed_form():
    poles = np.array([1.0, 2.5, 7.0])
    Wc, Wo = S.gramians(np.diag(-poles), np.ones((3, 1)), np.ones((1, 3)))
    np.testing.assert_allclose(Wc, 1 / (poles[:, None] + poles), rtol=1e-14)  # Cauchy's matrix
    np.testing.assert_allclose(Wo, Wc, rtol=1e-14)
    Wc, _ = S.gramians(np.diag(1 / poles[1:]), np.ones((2, 1)), np.ones((1, 2)), dt=0.1)
    np.testing.assert_allclose(Wc, 1 / (1 - 1 / np.multiply.outer(poles[1:], poles[1:])), rtol=1e-14)


def test_a_nilpotent_discrete_system_has_finite_sums():
    shift = np.diag(np.ones(3), -1)
    Wc, Wo = S.gramians(shift, np.eye(4)[:, :1], np.eye(4)[3:], dt=True)
    np.testing.assert_allclose(Wc, np.eye(4), atol=1e-15)
    np.testing.assert_allclose(Wo, np.eye(4), atol=1e-15)


@pytest.mark.parametrize("discrete", [False, True])
def test_small_hankel_values_keep_their_digits(discrete):
    # Cauchy matrices: σ falls to 1e-10 and below, where the eigenvalues of W_c W_o are rounding.
    n = 7 if discrete else 8
    A = np.diag(1 / (1.5 + np.arange(n))) if discrete else np.diag(-1.0 - np.arange(n))
    B, C, dt = np.ones((n, 1)), np.ones((1, n)), discrete or None
    exact = exact_hankel_values(A, B, C, discrete)
    assert exact[-1] < 1e-10 * exact[0]
    np.testing.assert_allclose(S.hankel_singular_values(A, B, C, dt), exact, rtol=1e-10)
    Wc, Wo = S.gramians(A, B, C, dt)
    naive = np.sqrt(np.abs(np.sort(np.linalg.eigvals(Wc @ Wo).real)[0]))
    assert abs(naive / exact[-1] - 1) > 0.1


@pytest.mark.parametrize("discrete", [False, True])
def test_hankel_values_do_not_depend_on_units(rng, discrete):
    A, B, C = random_system(rng, 6, discrete=discrete)
    exact, dt = exact_hankel_values(A, B, C, discrete), discrete or None
    np.testing.assert_allclose(S.hankel_singular_values(A, B, C, dt), exact, rtol=1e-13)
    d = 2.0 ** np.array([-40, 30, 0, -11, 7, 25])
    rescaled = d[:, None] * A / d, d[:, None] * B, C / d
    np.testing.assert_allclose(S.hankel_singular_values(*rescaled, dt), exact, rtol=1e-12)
    found = S.realization(*rescaled, dt)
    assert found.rank == 6
    same_transfer((A, B, C), found[:3], frequencies(rng, discrete))
    Wc, Wo = S.gramians(*rescaled, dt)
    reference = S.gramians(A, B, C, dt)
    np.testing.assert_allclose(Wc / np.multiply.outer(d, d), reference[0], atol=1e-12 * np.abs(reference[0]).max())
    np.testing.assert_allclose(Wo * np.multiply.outer(d, d), reference[1], atol=1e-12 * np.abs(reference[1]).max())


@hypothesis.settings(max_examples=40)
@hypothesis.given(seed=st.integers(0, 2**20), n=st.integers(1, 7), discrete=st.booleans(), complex_=st.booleans())
def test_invariants(seed, n, discrete, complex_):
    rng, dt = np.random.default_rng(seed), discrete or None
    A, B, C = random_system(rng, n, m=1, p=2, discrete=discrete, field="complex" if complex_ else "real")
    hsv = S.hankel_singular_values(A, B, C, dt)
    Wc, Wo = S.gramians(A, B, C, dt)
    eigenvalues = np.sort(np.abs(np.linalg.eigvals(Wc @ Wo)))[::-1]
    np.testing.assert_allclose(hsv**2, eigenvalues, rtol=0, atol=1e-11 * np.linalg.norm(Wc) * np.linalg.norm(Wo))
    found = S.realization(A, B, C, dt)
    for W in S.gramians(*found[:3], dt):
        np.testing.assert_allclose(W, np.diag(found.hsv), rtol=0, atol=1e-9 * hsv[0])
    same_transfer((A, B, C), found[:3], frequencies(rng, discrete), rtol=1e-9)
    # the lowest of tr W_c + tr W_o over all coordinates
    assert np.trace(Wc + Wo).real >= 2 * hsv.sum() * (1 - 1e-12)


# Realisations


@pytest.mark.parametrize(("discrete", "field"), KINDS)
def test_balanced_realization(rng, discrete, field):
    system, dt = random_system(rng, 10, discrete=discrete, field=field), discrete or None
    found = S.realization(*system, dt)
    hsv = found.hsv
    for W in S.gramians(*found[:3], dt):
        np.testing.assert_allclose(W, np.diag(hsv), rtol=0, atol=1e-12 * hsv[0])
    same_transfer(system, found[:3], frequencies(rng, discrete))
    Wc, Wo = S.gramians(*system, dt)
    T = found.T
    np.testing.assert_allclose(T @ Wc @ T.conj().T, np.diag(hsv), rtol=0, atol=1e-12 * hsv[0])
    np.testing.assert_allclose(T @ system[0], found.A @ T, rtol=0, atol=1e-11 * np.abs(T).max())
    np.testing.assert_allclose(T @ system[1], found.B, rtol=0, atol=1e-12 * np.abs(found.B).max())
    np.testing.assert_allclose(found.C @ T, system[2], rtol=0, atol=1e-11 * np.abs(system[2]).max())
    P = T.conj().T @ T  # the geometric mean of W_c⁻¹ and W_o
    np.testing.assert_allclose(P @ Wc @ P, Wo, rtol=0, atol=1e-10 * np.abs(Wo).max())
    assert found.A.dtype == system[0].dtype
    assert hsv.dtype == float


@pytest.mark.parametrize("discrete", [False, True])
def test_systems_that_are_not_minimal(rng, discrete):
    A, B, C = random_system(rng, 4, discrete=discrete)
    hidden, _, _ = random_system(rng, 3, discrete=discrete)
    big = scipy.linalg.block_diag(A, hidden)
    big[:4, 4:] = rng.normal(size=(4, 3))  # observable, not controllable
    Q = np.linalg.qr(rng.normal(size=(7, 7)))[0]
    system = (
        Q @ big @ Q.T,
        Q @ np.concatenate([B, np.zeros((3, 2))]),
        np.concatenate([C, np.ones((3, 3))], axis=1) @ Q.T,
    )
    found = S.realization(*system, discrete or None)
    assert (found.rank, found.T.shape, found.hsv.shape) == (4, (4, 7), (7,))
    np.testing.assert_allclose(found.hsv[:4], S.hankel_singular_values(A, B, C, discrete or None), rtol=1e-11)
    assert found.hsv[4] < 1e-14 * found.hsv[0]
    same_transfer((A, B, C), found[:3], frequencies(rng, discrete))
    assert S.truncate(*system, order=4, dt=discrete or None).error_bound < 1e-13 * found.hsv[0]
    with pytest.raises(ParameterError, match="4 states, as many as a minimal realisation has"):
        S.truncate(*system, order=6, dt=discrete or None)


def test_the_hankel_operator_is_a_chain_of_two_factors(rng):
    horizon = 6
    A, B, C = random_system(rng, 4, m=1, p=1, discrete=True)
    powers = [np.linalg.matrix_power(A, k) for k in range(horizon)]
    reachability = np.concatenate([power @ B for power in powers], axis=1)
    observability = np.concatenate([C @ power for power in powers])
    hankel = scipy.linalg.hankel([(C @ np.linalg.matrix_power(A, k) @ B).item() for k in range(2 * horizon - 1)])
    np.testing.assert_allclose(observability @ reachability, hankel[:horizon, :horizon], atol=1e-13)
    reach, observe = fb.balance.balanced([reachability, observability])
    values = np.linalg.svd(observability @ reachability, compute_uv=False)[:4]
    for W in (reach @ reach.T, observe.T @ observe):
        np.testing.assert_allclose(W, np.diag(values), rtol=0, atol=6e-15 * values[0])
    # and with an endless horizon the same is said of the Gramians
    many = [np.linalg.matrix_power(A, k) for k in range(400)]
    reachability, observability = (
        np.concatenate([power @ B for power in many], axis=1),
        np.concatenate([C @ power for power in many]),
    )
    Wc, Wo = S.gramians(A, B, C, dt=True)
    np.testing.assert_allclose(reachability @ reachability.T, Wc, rtol=0, atol=1e-13 * np.abs(Wc).max())
    np.testing.assert_allclose(observability.T @ observability, Wo, rtol=0, atol=1e-13 * np.abs(Wo).max())
    singular = np.linalg.svd(observability @ reachability, compute_uv=False)[:4]
    np.testing.assert_allclose(singular, S.hankel_singular_values(A, B, C, dt=True), rtol=1e-10)
    np.testing.assert_allclose(
        2 * fb.balance.minimum_on_fibre(observability @ reachability, 2), 2 * singular.sum(), rtol=1e-10
    )


# Truncation


@pytest.mark.parametrize(("discrete", "field"), KINDS)
def test_the_error_lies_between_its_bounds(rng, discrete, field):
    system, dt = random_system(rng, 5, m=1, p=1, discrete=discrete, field=field), discrete or None
    hsv = S.hankel_singular_values(*system, dt)
    for order in range(5):
        found = S.truncate(*system, order=order, dt=dt)
        reduced = found.system
        assert np.isclose(found.error_bound, 2 * hsv[order:].sum(), rtol=1e-13)
        assert np.isclose(found.lower_bound, hsv[order], rtol=1e-13)
        error = infinity_norm(*difference(system, reduced[:3]), discrete)
        assert found.lower_bound * (1 - 1e-9) <= error <= found.error_bound * (1 + 1e-9)
        poles = np.linalg.eigvals(reduced.A)
        assert np.all(np.abs(poles) < 1 if discrete else poles.real < 0)
    if not discrete:  # one state fewer: an all-pass error
        assert abs(error / (2 * hsv[4]) - 1) < 1e-6
    assert S.truncate(*system, order=5, dt=dt).error_bound == 0.0


def test_equal_hankel_values_are_not_parted_and_count_once(rng):
    A, B, C = random_system(rng, 3, m=1, p=1)
    twice = [scipy.linalg.block_diag(M, M) for M in (A, B, C)]
    Q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    twice = Q @ twice[0] @ Q.T, Q @ twice[1], twice[2] @ Q.T
    hsv = S.hankel_singular_values(A, B, C)
    np.testing.assert_allclose(S.hankel_singular_values(*twice), np.repeat(hsv, 2), rtol=0, atol=1e-14 * hsv[0])
    found = S.truncate(*twice, order=2)
    assert np.isclose(found.error_bound, 2 * (hsv[1] + hsv[2]), rtol=1e-11)
    error = infinity_norm(*difference(twice, found.system[:3]))
    assert found.lower_bound * (1 - 1e-9) <= error <= found.error_bound * (1 + 1e-9)
    with pytest.raises(ParameterError, match="cuts between the equal Hankel singular values") as caught:
        S.truncate(*twice, order=3)
    assert "0, 2, 4, 6" in caught.value.needed
    assert S.truncate(*twice, tolerance=2.01 * (hsv[1] + hsv[2])).order == 2


def test_tolerance_chooses_the_lowest_order(rng):
    system = random_system(rng, 8)
    hsv = S.hankel_singular_values(*system)
    bounds = [2 * hsv[r:].sum() for r in range(9)]
    for order in range(9):
        assert S.truncate(*system, tolerance=bounds[order] * (1 + 1e-9)).order == order
    assert S.truncate(*system, tolerance=0).order == 8
    assert S.truncate(*system, tolerance=np.inf).order == 0


@pytest.mark.parametrize("discrete", [False, True])
def test_unstable_parts_are_kept(rng, discrete):
    A, B, C = random_system(rng, 6, discrete=discrete)
    unstable = np.array([[1.1, 0.7], [-0.7, 1.1]])
    mix = rng.normal(size=(8, 8))
    system = (
        mix @ scipy.linalg.block_diag(A, unstable) @ np.linalg.inv(mix),
        mix @ np.concatenate([B, rng.normal(size=(2, 2))]),
        np.concatenate([C, rng.normal(size=(3, 2))], axis=1) @ np.linalg.inv(mix),
    )
    dt, D = discrete or None, rng.normal(size=(3, 2))
    with pytest.raises(UnstableSystemError, match="2 unstable poles"):
        S.truncate(*system, D, order=5, dt=dt)
    whole = S.truncate(*system, D, order=8, dt=dt, unstable="split")
    same_transfer((*system,), whole.system[:3], frequencies(rng, discrete))
    np.testing.assert_allclose(whole.hsv, S.hankel_singular_values(A, B, C, dt), rtol=1e-9)
    found = S.truncate(*system, D, order=5, dt=dt, unstable="split")
    assert (found.order, found.unstable, found.kept) == (5, 2, 3)
    assert np.array_equal(found.system.D, D)
    for s in frequencies(rng, discrete, 40):
        error = np.linalg.norm(transfer(*system, s) - transfer(*found.system[:3], s), 2)
        assert error <= found.error_bound * (1 + 1e-9)
    poles = np.linalg.eigvals(found.system.A)
    for pole in (1.1 + 0.7j, 1.1 - 0.7j):
        assert np.abs(poles - pole).min() < 1e-10
    with pytest.raises(ParameterError, match="2 of them unstable, and kept"):
        S.truncate(*system, order=1, dt=dt, unstable="split")
    only = S.truncate(unstable, B[:2], C[:, :2], order=2, dt=dt, unstable="split")
    assert (only.order, only.error_bound, len(only.hsv)) == (2, 0.0, 0)


# Other libraries


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize(("m", "p"), [(1, 1), (3, 2)])
def test_against_slycot(rng, discrete, m, p):
    slycot = optional("slycot", "dev")
    for _ in range(5):
        A, B, C = random_system(rng, 12, m, p, discrete=discrete)
        kind = "D" if discrete else "C"
        _, a, b, c, hsv = slycot.ab09ad(kind, "B", "N", 12, m, p, A.copy(), B.copy(), C.copy(), nr=5)
        found = S.truncate(A, B, C, order=5, dt=discrete or None)
        np.testing.assert_allclose(found.hsv, hsv, rtol=0, atol=1e-13 * hsv[0])
        assert np.isclose(found.error_bound, 2 * hsv[5:].sum(), rtol=1e-11)
        same_transfer((a, b, c), found.system[:3], frequencies(rng, discrete))


def test_against_pymor(rng):
    iosys, bt = optional("pymor.models.iosys", "dev"), optional("pymor.reductors.bt", "dev")
    logging.getLogger("pymor").setLevel(logging.ERROR)
    for discrete in (False, True):
        A, B, C = random_system(rng, 12, discrete=discrete)
        full = iosys.LTIModel.from_matrices(A, B, C, sampling_time=0.1 if discrete else 0)
        reductor = bt.BTReductor(full)
        reduced = reductor.reduce(4, projection="sr").to_matrices()
        found = S.truncate(A, B, C, order=4, dt=0.1 if discrete else None)
        np.testing.assert_allclose(full.hsv(), found.hsv, rtol=0, atol=1e-8 * found.hsv[0])
        assert np.isclose(reductor.error_bounds()[3], found.error_bound, rtol=1e-8)
        same_transfer(reduced[:3], found.system[:3], frequencies(rng, discrete), rtol=1e-8)


def test_python_control(rng):
    control = optional("control", "dev")
    optional("slycot", "dev", load=False)  # control does not balance without it
    A, B, C = random_system(rng, 6)
    D = rng.normal(size=(3, 2))
    system = control.ss(A, B, C, D)
    found = S.truncate(system, order=3)
    assert isinstance(found.system, control.StateSpace)
    other = control.balred(system, 3)
    for w in (0.1, 1.0, 10.0):
        np.testing.assert_allclose(found.system(1j * w), other(1j * w), atol=1e-11)
    np.testing.assert_allclose(S.hankel_singular_values(system), control.hankel_singular_values(system), rtol=1e-10)
    A, B, C = random_system(rng, 6, discrete=True)
    for dt in (True, 0.5):
        reduced = S.truncate(control.ss(A, B, C, D, dt), order=3).system
        assert (reduced.dt, reduced.nstates) == (dt, 3)
        assert np.array_equal(reduced.D, D)
