"""Balancing flows: what is exact along each of them, their rates, their closed forms, and what must not be asserted."""

import fractions
import functools
import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg

import fibration as fb
from chains import chain, distance, norm
from fibration.balance._flows import OrbitField
from fibration.errors import (
    ConditioningWarning,
    NonFiniteDataError,
    SingularProductError,
    TimeSpanError,
    UnknownNameError,
)

B = fb.balance
CLOSED = [((3, 3, 3), "complex"), ((4, 2, 5), "real"), ((4, 3, 3, 5), "real")]
OPEN = [((3, 5, 5, 3), "real"), ((2, 3, 3, 2, 3), "complex")]


@functools.cache
def run(widths, which, kind, t, seed=0, **options):
    Ws = chain(seed, widths, which)
    return Ws, B.flow(Ws, t, kind, **{"rtol": 1e-10, "atol": 1e-12} | options)


def saved(trajectory, k):
    return [W[k] for W in trajectory.params]


@pytest.mark.parametrize("kind", ["induced", "newton"])
@pytest.mark.parametrize(("widths", "which"), CLOSED)
def test_the_moment_map_decays_uniformly(widths, which, kind):
    Ws, trajectory = run(widths, which, kind, 3.0)
    moments = trajectory.observed["moment_map"]
    expected = np.exp(-2 * trajectory.times)[:, None] * np.concatenate([mu.ravel() for mu in B.moment_map(Ws)])
    np.testing.assert_allclose(moments, expected, atol=1e-11 * norm(Ws) ** 2)
    assert trajectory.observed["drift"].max() < 1e-14
    np.testing.assert_allclose(
        trajectory.observed["regularizer"], [B.regularizer(saved(trajectory, k)) for k in range(101)], rtol=1e-12
    )
    assert trajectory.stats["kind"] == kind


@pytest.mark.parametrize(("widths", "which"), OPEN)
def test_the_law_of_the_induced_flow_minds_neither_ranks_nor_orbits(widths, which):
    Ws, trajectory = run(widths, which, "induced", 3.0)
    assert not B.orbit(Ws).closed
    moments = trajectory.observed["moment_map"]
    np.testing.assert_allclose(moments, np.exp(-2 * trajectory.times)[:, None] * moments[0], atol=1e-11 * norm(Ws) ** 2)
    assert trajectory.observed["drift"].max() < 1e-12


@pytest.mark.parametrize(("widths", "which"), CLOSED + OPEN)
def test_the_excess_falls_at_the_uniform_rate_and_the_path_is_short(widths, which):
    Ws, trajectory = run(widths, which, "induced", 3.0)
    excess = trajectory.observed["regularizer"] - B.minimum_on_fibre(B.end_to_end(Ws), len(Ws))
    slack = 1e-12 * norm(Ws) ** 2
    assert np.all(excess <= np.exp(-2 * trajectory.times) * excess[0] + slack)
    chains = [saved(trajectory, k) for k in range(101)]
    length = sum(distance(a, b) for a, b in itertools.pairwise(chains))
    assert length <= B.distance_bounds(Ws)[1]
    left = [distance(W, chains[-1]) for W in chains]
    assert np.all(left <= np.sqrt(2 * excess[0]) * np.exp(-trajectory.times) + slack)


@pytest.mark.parametrize("widths", [(3, 3, 3), (3, 3, 3, 3), (2, 4, 4, 2), (3, 2, 4, 3)])
def test_the_polyak_lojasiewicz_inequality(widths):
    """|grad R|² ≥ 2(R − R*) for chains of all shapes, with the gradient along the orbit."""
    action, identity = B.ChainAction(), [jnp.eye(d) for d in widths[1:-1]]

    @jax.jit
    def squared_gradient(start):
        xi = OrbitField(start, "induced", 1e-13)(0.0, identity)
        return fb.trees.norm(action.infinitesimal(start, xi)) ** 2

    for seed in range(60):
        Ws = chain(seed, widths, spread=1.0)
        assert squared_gradient([jnp.asarray(W) for W in Ws]) >= 2 * B.excess(Ws) - 1e-10 * norm(Ws) ** 2


def slope(times, values):
    return -np.polyfit(times, np.log(values), 1)[0]


def test_rates_at_the_end_of_the_induced_flow():
    # Closed: |W − W_∞| ~ e^{−2t} and R − R* ~ e^{−4t}.
    _, trajectory = run((3, 3, 3, 3), "real", "induced", 12.0, rtol=1e-12, atol=1e-14)
    end = saved(trajectory, -1)
    left = np.array([distance(saved(trajectory, k), end) for k in range(101)])
    part = (trajectory.times > 3) & (trajectory.times < 6)
    np.testing.assert_allclose(slope(trajectory.times[part], left[part]), 2, atol=0.02)
    excess = trajectory.observed["regularizer"] - B.minimum_on_fibre(B.end_to_end(end), 3)
    part = (trajectory.times > 2) & (trajectory.times < 4)
    np.testing.assert_allclose(slope(trajectory.times[part], excess[part]), 4, atol=0.1)
    # Not closed: e^{−t} and e^{−2t}, approached from above.
    Ws, trajectory = run((3, 5, 5, 3), "real", "induced", 8.0)
    excess = trajectory.observed["regularizer"] - B.minimum_on_fibre(B.end_to_end(Ws), 3)
    part = (trajectory.times > 5) & (trajectory.times < 8)
    assert 1.95 < slope(trajectory.times[part], excess[part]) < 2.3


def test_scalar_chains_have_a_solution():
    a, b = 3.0, -0.5
    trajectory = B.flow([np.array([[a]]), np.array([[b]])], 4.0, rtol=1e-11, atol=1e-13)
    m, t = (a**2 - b**2) * np.exp(-2 * trajectory.times), trajectory.times
    expected = np.sqrt((m + np.sqrt(m**2 + 4 * (a * b) ** 2)) / 2)
    np.testing.assert_allclose(trajectory.params[0][:, 0, 0], expected, rtol=1e-10)
    assert t[-1] == 4.0


def test_the_gradient_norm_may_grow():
    """For N ≥ 3 |grad R| is no Lyapunov function: here its square grows at the rate 0.66, in 50 digits."""
    given = [[[-35, 22], [-11, 7]], [[-25, 32], [15, -19]], [[7, 30], [-5, -37]]]
    mpmath.mp.dps = 50

    def squared_gradient_and_velocity(w):
        A, D, E = (mpmath.matrix([[w[4 * p], w[4 * p + 1]], [w[4 * p + 2], w[4 * p + 3]]]) for p in range(3))
        columns = []
        for k in range(8):
            x = [mpmath.matrix(2, 2), mpmath.matrix(2, 2)]
            x[k // 4][(k % 4) // 2, k % 2] = 1
            motion = [x[0] * A, x[1] * D - D * x[0], -E * x[1]]
            columns.append([M[i, j] for M in motion for i in range(2) for j in range(2)])
        L = mpmath.matrix(columns).T
        projected = L * mpmath.lu_solve(L.T * L, L.T * mpmath.matrix(w))
        return mpmath.norm(projected) ** 2, -projected

    w = mpmath.matrix([fractions.Fraction(x).numerator for M in given for row in M for x in row])
    f, v = squared_gradient_and_velocity(w)
    h = mpmath.mpf(10) ** -15
    ahead, behind = (squared_gradient_and_velocity(w + s * h * v)[0] for s in (1, -1))
    assert (ahead - behind) / (2 * h) / f > 0.6
    # the excess falls at its rate all the same, along the flow of the library
    trajectory = B.flow([np.array(M, float) for M in given], 0.1, rtol=1e-9)
    excess = trajectory.observed["regularizer"] - B.minimum_on_fibre(
        B.end_to_end([np.array(M, float) for M in given]), 3
    )
    assert np.all(excess <= np.exp(-2 * trajectory.times) * excess[0] * (1 + 1e-9))


def test_two_flows_are_horizontal_and_the_third_is_not():
    Ws = [jnp.asarray(W) for W in chain(0, (3, 3, 3, 3))]
    action, identity = B.ChainAction(), [jnp.eye(3)] * 2
    skew = {}
    for kind in ("induced", "squared_moment", "newton"):
        velocity = action.infinitesimal(Ws, OrbitField(Ws, kind, 1e-13)(0.0, identity))
        skew[kind] = norm([x - x.T for x in action.adjoint(Ws, velocity)])
    assert skew["induced"] < 1e-11 * norm(Ws) ** 2
    assert skew["squared_moment"] < 1e-13 * norm(Ws) ** 4
    assert skew["newton"] > 1e-3


def test_the_hessian_on_the_fibre_is_two():
    # N = d = 3 at balance: 12 twos, on what is not compact, and 6 zeros, on the compact orbit.
    Ws = [jnp.asarray(W) for W in B.balanced(chain(0, (3, 3, 3, 3)))]
    action = B.ChainAction()

    def generators(x):
        return list(x.reshape(2, 3, 3))

    def length(x):
        return B.regularizer(B.act([jax.scipy.linalg.expm(g) for g in generators(x)], Ws))

    hessian = jax.hessian(length)(jnp.zeros(18))
    units = [action.infinitesimal(Ws, generators(e)) for e in jnp.eye(18)]
    motions = np.stack([np.concatenate([W.ravel() for W in motion]) for motion in units])
    values = scipy.linalg.eigh(hessian, motions @ motions.T, eigvals_only=True)
    np.testing.assert_allclose(values, [0] * 6 + [2] * 12, atol=1e-9)


# --- the squared moment map -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("widths", "which"), [((4, 3, 5), "real"), ((3, 3, 3), "complex")])
def test_the_riccati_path_is_the_flow_of_two_factors(widths, which):
    Ws, trajectory = run(widths, which, "squared_moment", 2.0, method="dopri8", rtol=1e-11, atol=1e-13)
    A, C = Ws[0] @ Ws[0].conj().T, Ws[1].conj().T @ Ws[1]
    path = B.riccati_path(A, C, trajectory.times)
    # W_1(t)* W_1(t) = W_1* P W_1 exactly, since W_1(t) = g W_1
    first = trajectory.params[0]
    np.testing.assert_allclose(
        first.conj().swapaxes(1, 2) @ first, Ws[0].conj().T @ path @ Ws[0], atol=1e-9 * norm(Ws) ** 2
    )
    # the regulariser falls at the rate |μ|², by differences of fourth order
    lengths, moments = trajectory.observed["regularizer"], trajectory.observed["moment_map"]
    late, step = slice(50, None), trajectory.times[1]
    slopes = (8 * (lengths[3:-1] - lengths[1:-3]) - (lengths[4:] - lengths[:-4])) / (12 * step)
    rates = np.sum(np.abs(moments[2:-2]) ** 2, axis=1)
    np.testing.assert_allclose(-slopes[late], rates[late], rtol=1e-4, atol=1e-9 * lengths[0])
    # P' = 2(B − P A P), and the limit is the geometric mean
    step = 1e-5
    for t in (0.1, 0.7):
        before, P, after = B.riccati_path(A, C, [t - step, t, t + step])
        np.testing.assert_allclose((after - before) / (2 * step), 2 * (C - P @ A @ P), atol=1e-7 * norm([A, C]) ** 2)
    limit = B.riccati_path(A, C, [1e6])[0]
    np.testing.assert_allclose(limit @ A @ limit, C, atol=1e-10 * norm([C]) * np.linalg.cond(A))


def test_the_riccati_path_against_an_ode_solver_and_at_singular_b():
    Ws = chain(3, (4, 3, 2))  # X has rank 2, so that S is singular
    A, C = Ws[0] @ Ws[0].T, Ws[1].T @ Ws[1]
    times = np.linspace(0, 3, 7)

    def field(t, p):
        P = p.reshape(3, 3)
        return (2 * (C - P @ A @ P)).ravel()

    exact = scipy.integrate.solve_ivp(
        field, (0, 3), np.eye(3).ravel(), "DOP853", t_eval=times, rtol=1e-13, atol=1e-14
    ).y.T.reshape(-1, 3, 3)
    np.testing.assert_allclose(B.riccati_path(A, C, times), exact, atol=1e-11)
    np.testing.assert_array_equal(np.isfinite(B.riccati_path(1e8 * A, 1e8 * C, [0, 1e8])), True)


def test_the_riccati_equations_of_a_chain_are_coupled():
    Ws, trajectory = run((3, 3, 3, 3), "real", "squared_moment", 1.0, method="dopri8", rtol=1e-11, atol=1e-13)

    def field(t, p):
        P = [np.eye(3), *p.reshape(2, 3, 3), np.eye(3)]
        return np.stack(
            [
                2 * (Ws[k].T @ P[k + 1] @ Ws[k] - P[k] @ Ws[k - 1] @ np.linalg.inv(P[k - 1]) @ Ws[k - 1].T @ P[k])
                for k in (1, 2)
            ]
        ).ravel()

    start = np.stack([np.eye(3)] * 2).ravel()
    end = scipy.integrate.solve_ivp(field, (0, 1), start, "DOP853", rtol=1e-13, atol=1e-14).y[:, -1].reshape(2, 3, 3)
    S = B.partial_products(Ws)[0], B.partial_products(saved(trajectory, -1))[0]
    for p in (1, 2):
        np.testing.assert_allclose(S[1][p].T @ S[1][p], S[0][p].T @ end[p - 1] @ S[0][p], atol=1e-10)


def squared_moment_spectrum(Ws):
    """The rates of the linearised flow on Hermitian generators, from its matrix."""
    action, units = B.ChainAction(), []
    widths = [W.shape[0] for W in Ws[:-1]]
    for p, d in enumerate(widths):
        for i, j in itertools.combinations_with_replacement(range(d), 2):
            xi = [np.zeros((w, w)) for w in widths]
            xi[p][i, j] += 1
            xi[p][j, i] += 1
            units.append([jnp.asarray(x / np.linalg.norm(xi[p])) for x in xi])
    rows = []
    for xi in units:
        image = action.hermitian(action.adjoint(Ws, action.infinitesimal(Ws, xi)))
        rows.append([float(fb.trees.dot(image, other)) for other in units])
    return 2 * np.linalg.eigvalsh(np.array(rows))


@pytest.mark.parametrize("widths", [(3, 3, 3), (4, 3, 3, 3, 5), (2, 3, 2), (2, 4, 3, 2)])
def test_rates_of_the_squared_moment_flow(widths):
    rank = min(widths)
    values = np.array([1.7, 0.9, 0.4][-rank:])
    X = np.zeros((widths[-1], widths[0]))
    X[range(rank), range(rank)] = values
    Ws = [jnp.asarray(W) for W in B.factor(X, widths)]
    rates = B.squared_moment_rates(values, len(Ws), widths[1:-1])
    found = squared_moment_spectrum(Ws)
    # where two hidden layers are wide there are directions that nothing moves, of rate zero
    np.testing.assert_allclose(found[found > 1e-10], rates, rtol=1e-10)


def test_the_slowest_rates_of_the_spec():
    for depth, expected in ((2, 1.6), (3, 1.08577), (5, 0.52952)):
        rates = B.squared_moment_rates([1.0, 0.4], depth)
        np.testing.assert_allclose(rates[0], expected, rtol=1e-5)
        np.testing.assert_allclose(rates[0], 8 * 0.4 ** (2 / depth) * np.sin(np.pi / (2 * depth)) ** 2, rtol=1e-12)
        np.testing.assert_allclose(rates[-1], 8 * np.cos(np.pi / (2 * depth)) ** 2, rtol=1e-12)
    assert B.squared_moment_rates([0.4], 2, [5])[0] == pytest.approx(0.8)


@pytest.mark.parametrize("depth", [2, 3])
def test_the_squared_moment_flow_ends_at_its_slowest_rate(depth):
    rng = np.random.default_rng(0)
    Ws = B.factor(np.diag([1.0, 0.4]), (2,) * (depth + 1))
    Ws = B.act([scipy.linalg.expm(0.3 * rng.normal(size=(2, 2))) for _ in range(depth - 1)], Ws)
    trajectory = B.flow(Ws, 14.0, "squared_moment", rtol=1e-12, atol=1e-14)
    moments = np.linalg.norm(trajectory.observed["moment_map"], axis=1)
    part = (trajectory.times > 8) & (trajectory.times < 12)
    rate = B.squared_moment_rates([1.0, 0.4], depth)[0]
    np.testing.assert_allclose(slope(trajectory.times[part], moments[part]), rate, rtol=1e-3)


def test_the_squared_moment_flow_is_slow_where_the_orbit_is_not_closed():
    with pytest.warns(ConditioningWarning, match=r"decays like 1/t.*induced"):
        trajectory = B.flow([np.array([[2.0]]), np.array([[0.0]])], 5.0, "squared_moment", rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(trajectory.observed["moment_map"][:, 0], 4 / (1 + 8 * trajectory.times), rtol=1e-8)
    with pytest.warns(ConditioningWarning):
        trajectory = B.flow(chain(0, (2, 4, 4, 2)), 400.0, "squared_moment", [200.0, 400.0])
    sizes = np.linalg.norm(trajectory.observed["moment_map"], axis=1)
    np.testing.assert_allclose(sizes[1] / sizes[0], 0.5, atol=0.01)


def test_the_three_flows_end_in_different_points_of_one_compact_orbit():
    ends = {}
    for kind in ("induced", "squared_moment", "newton"):
        _, trajectory = run((3, 3, 3, 3), "real", kind, 12.0, rtol=1e-12, atol=1e-14)
        ends[kind] = saved(trajectory, -1)
    Ws = chain(0, (3, 3, 3, 3))
    ends |= {gauge: B.balanced(Ws, gauge) for gauge in ("polar", "nearest")}
    accuracy = {"squared_moment": 1e-2}
    for name, end in ends.items():
        assert norm(B.imbalance(end)) < accuracy.get(name, 1e-9) * norm(Ws) ** 2
    for a, b in itertools.combinations(("induced", "newton", "polar", "nearest"), 2):
        assert distance(ends[a], ends[b]) > 1e-3, (a, b)
    # all of them are P_p: S_p(∞)* S_p(∞) is the same
    polar = B.partial_products(ends["polar"])[0]
    for name in ("induced", "newton"):
        for S, P in zip(B.partial_products(ends[name])[0], polar, strict=True):
            np.testing.assert_allclose(S.T @ S, P.T @ P, atol=1e-8)
    assert distance(Ws, ends["nearest"]) <= min(distance(Ws, ends[name]) for name in ("induced", "newton", "polar"))


def test_where_everything_commutes_all_ends_are_the_polar_one():
    Ws = [np.diag([3.0, 0.2]), np.diag([0.5, 1.0]), np.diag([1.0, 4.0])]
    for kind in ("induced", "newton"):
        trajectory = B.flow(Ws, 14.0, kind, rtol=1e-11, atol=1e-13)
        assert distance(saved(trajectory, -1), B.balanced(Ws, "polar")) < 1e-8


def test_wide_matrices_need_no_kronecker_product():
    # N = 3, d = 64: the equations of the dual problem would be 4096 × 4096, those of the group 8192 × 8192
    Ws = chain(0, (64,) * 4, spread=0.2)
    trajectory = B.flow(Ws, 0.5, times=[0.25, 0.5], method="tsit5", rtol=1e-6)
    moments = trajectory.observed["moment_map"]
    start = np.concatenate([mu.ravel() for mu in B.moment_map(Ws)])
    np.testing.assert_allclose(moments, np.exp([[-0.5], [-1.0]]) * start, atol=1e-6 * norm(Ws) ** 2 / 64)
    assert trajectory.observed["drift"].max() < 1e-13


def test_float64_whatever_the_default():
    Ws = chain(0, (4, 2, 5))
    with jax.enable_x64(False):
        trajectory = B.flow([jnp.asarray(W) for W in Ws], 1.0, times=[1.0], rtol=1e-10, atol=1e-12)
    assert trajectory.params[0].dtype == np.float64
    start = np.concatenate([mu.ravel() for mu in B.moment_map([W.astype(np.float32).astype(float) for W in Ws])])
    np.testing.assert_allclose(trajectory.observed["moment_map"][0], np.exp(-2) * start, atol=1e-9)


def test_what_cannot_be_had_is_named():
    Ws = chain(0, (2, 2, 2))
    with pytest.raises(UnknownNameError, match="'induced', 'squared_moment', 'newton'"):
        B.flow(Ws, 1.0, "gradient")
    with pytest.raises(TimeSpanError):
        B.flow(Ws, -1.0)
    with pytest.raises(SingularProductError, match="positive definite A"):
        B.riccati_path(np.diag([1.0, 0.0]), np.eye(2), [1.0])
    with pytest.raises(NonFiniteDataError):
        B.flow([np.eye(2), np.full((2, 2), np.nan)], 1.0)
