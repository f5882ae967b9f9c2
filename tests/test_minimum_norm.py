import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import fibration as fb
from fibration.errors import ConditioningWarning, PrecisionWarning
from fibration.tangent._differential import Differential
from fibration.tangent._minimum_norm import factorize, lift
from linear_maps import exact_solution, inner, linear, pseudoinverse, with_singular_values
from problems import tanh_problem

M, K = 60, 200


def relative(a, b):
    return np.linalg.norm(np.asarray(a, float) - b) / np.linalg.norm(b)


@pytest.fixture(scope="module")
def table():
    """Matrices and right-hand sides of the spec's table 3.2, with their exact solutions."""
    cases = {}
    for dtype, conditions in ((np.float64, (1e3, 1e7, 1e9)), (np.float32, (1e2, 1e3, 1e4))):
        for condition in conditions:
            matrix = with_singular_values(M, K, np.logspace(0, -np.log10(condition), M)).astype(dtype)
            rhs = (matrix @ np.random.default_rng(1).normal(size=K)).astype(dtype)
            cases[dtype, condition] = matrix, rhs, exact_solution(matrix, rhs)
    return cases


def error(table, dtype, condition, method):
    matrix, rhs, exact = table[dtype, condition]
    v, info = fb.tangent.minimum_norm(*linear(matrix, dtype), rhs, method=method)
    return relative(v, exact), info


# Anchors of the spec, table 3.2; where it prints none, a unit roundoff times the condition.
@pytest.mark.parametrize(
    ("dtype", "method", "anchors"),
    [
        (np.float64, "refined", {1e3: 1e-13, 1e7: 4.6e-11}),
        (np.float64, "pcg", {1e3: 1e-13, 1e7: 1e-9, 1e9: 8e-9}),
        (np.float64, "qr", {1e3: 1e-13, 1e7: 1e-9, 1e9: 1e-7}),
        (np.float64, "svd", {1e3: 1e-13, 1e7: 1e-9, 1e9: 1e-7}),
        (np.float32, "refined", {1e2: 1e-6, 1e3: 7e-6}),
        (np.float32, "qr", {1e2: 2e-6, 1e3: 1e-5, 1e4: 6e-5}),
    ],
)
def test_the_error_grows_with_the_condition_as_in_the_table(table, dtype, method, anchors):
    for condition, anchor in anchors.items():
        measured, info = error(table, dtype, condition, method)
        assert measured < 5 * anchor, (condition, measured)
        assert info.method == method
        assert info.condition == pytest.approx(condition, rel=0.5)


@pytest.mark.parametrize(
    ("dtype", "fine", "anchors"), [(np.float64, 1e3, {1e7: 1.4e-4}), (np.float32, None, {1e2: 9e-5, 1e3: 2e-3})]
)
def test_plain_cholesky_loses_the_square_of_the_condition_and_says_so(table, dtype, fine, anchors):
    if fine is not None:  # no warning
        assert error(table, dtype, fine, "cholesky")[0] < 1e-9
    for condition, anchor in anchors.items():
        with pytest.warns(ConditioningWarning, match="squares the condition"):
            measured, info = error(table, dtype, condition, "cholesky")
        assert anchor / 10 < measured < 10 * anchor
        assert info.method == "cholesky"


def test_a_cholesky_factor_that_breaks_down_is_replaced(table):
    for dtype, condition in ((np.float64, 1e9), (np.float32, 1e4)):
        matrix, rhs, _ = table[dtype, condition]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            v, info = fb.tangent.minimum_norm(*linear(matrix, dtype), rhs, method="cholesky")
        assert sum("could not be used" in str(w.message) for w in caught) == 1
        assert info.method == "eigh"
        assert info.climbed
        assert info.rank < M
        assert np.all(np.isfinite(v))
        short = [w for w in caught if w.category is PrecisionWarning]
        assert len(short) == (dtype is np.float32)


def test_least_squares_loses_the_square_only_by_the_residual():
    # Correction 0.5: u·κ(1 + κ|P⊥rhs|/(σ₁|v|)).
    condition, rng = 1e5, np.random.default_rng(2)
    matrix = with_singular_values(M, 20, np.logspace(0, -5, 20))
    inside = matrix @ rng.normal(size=20)
    rhs = rng.normal(size=M)
    left = rhs - matrix @ (exact := exact_solution(matrix, rhs))
    unit = np.finfo(float).eps / 2
    expected = unit * condition * (1 + condition * np.linalg.norm(left) / np.linalg.norm(exact))
    for method in ("qr", "svd", "normal"):
        v, info = fb.tangent.minimum_norm(*linear(matrix), rhs, method=method)
        assert relative(v, exact) < 10 * expected
        assert info.method == method
        v, _ = fb.tangent.minimum_norm(*linear(matrix), inside, method=method)
        assert relative(v, exact_solution(matrix, inside)) < 30 * unit * condition


WIDE, TALL = (6, 11), (11, 6)
ANY = ["auto", "eigh", "svd", "lsmr"]
CASES = [(WIDE, name) for name in (*ANY, "refined", "pcg")] + [(TALL, name) for name in (*ANY, "normal", "refined")]


@pytest.mark.parametrize(("shape", "method"), CASES)
@settings(max_examples=8)
@given(data=st.data())
def test_moore_penrose_and_push_through(shape, method, data):
    rank = data.draw(st.integers(1, min(shape)))
    sigma = data.draw(st.lists(st.floats(0.05, 3.0), min_size=rank, max_size=rank))
    d = with_singular_values(*shape, np.array(sigma), data.draw(st.integers(0, 99)))
    x = np.asarray(pseudoinverse(*linear(d), jnp.zeros(()), method))
    size = np.linalg.norm(x)
    close = 1e-11 * max(1, size)
    np.testing.assert_allclose(d @ x @ d, d, atol=close)
    np.testing.assert_allclose(x @ d @ x, x, atol=close * size)
    np.testing.assert_allclose(d @ x, (d @ x).T, atol=close)
    np.testing.assert_allclose(x @ d, (x @ d).T, atol=close)
    damping = data.draw(st.floats(1e-3, 10.0))
    damped = np.asarray(pseudoinverse(*linear(d), jnp.asarray(damping), method))
    np.testing.assert_allclose(damped, np.linalg.solve(d.T @ d + damping * np.eye(shape[1]), d.T), atol=close)
    np.testing.assert_allclose(damped, d.T @ np.linalg.inv(d @ d.T + damping * np.eye(shape[0])), atol=close)


def test_krylov_iterates_are_horizontal_and_cg_keeps_the_cost_law_with_wrong_residuals():
    # Spec 3.4: after any number of iterations from zero rhs·Dv = |rhs|², so that the cost falls as it should.
    d = with_singular_values(12, 30, np.logspace(0, -2, 12))
    rhs = np.random.default_rng(4).normal(size=12)
    problem, params = linear(d)
    vertical = np.linalg.svd(d)[2][12:]  # an orthonormal basis of ker D
    for method, iterations in (("cg", 1), ("cg", 4), ("lsmr", 3)):
        with pytest.warns(ConditioningWarning, match=f"after {iterations} iterations"):
            v, info = fb.tangent.minimum_norm(problem, params, rhs, method=method, iterations=iterations)
        assert np.linalg.norm(vertical @ v) < 1e-14 * np.linalg.norm(v)
        assert info.iterations == iterations
        assert info.residual == pytest.approx(relative(d @ v, rhs), rel=1e-9)
        if method == "cg":
            assert rhs @ d @ v == pytest.approx(rhs @ rhs, rel=1e-12)
        else:
            assert np.linalg.norm(d @ v - rhs) < np.linalg.norm(rhs)
        if iterations == 1:  # the strong form: all of the residuals are off by more than 1 %, and together by the most
            assert np.all(np.abs(d @ v - rhs) > 1e-2 * np.abs(rhs))
            assert info.residual > 0.5
    for method in ("cg", "lsmr"):
        v, info = fb.tangent.minimum_norm(problem, params, rhs, method=method)
        assert relative(v, np.linalg.pinv(d) @ rhs) < 1e-9
        assert info.converged
        assert info.rank == -1
        assert "not determined" in str(info)


@pytest.mark.parametrize("method", ["auto", "refined", "svd", "eigh"])
def test_the_diagnosis_agrees_with_numpy(method):
    problem, params = tanh_problem()
    d = np.asarray(fb.tangent.jacobian(problem, params))
    sigma = np.linalg.svd(d, compute_uv=False)
    rhs = np.random.default_rng(0).normal(size=(40, 2))
    v, info = fb.tangent.minimum_norm(problem, params, rhs, method=method)
    assert (info.rank, info.needed) == (80, 80)
    tolerance = 1e-7 if method in ("svd", "eigh") else 0.02
    assert info.sigma_max == pytest.approx(sigma[0], rel=tolerance)
    assert info.sigma_min == pytest.approx(sigma[-1], rel=tolerance)
    assert info.condition == pytest.approx(sigma[0] / sigma[-1], rel=2 * tolerance)
    assert info.residual < 1e-12 * info.condition
    assert jax.tree.structure(v) == jax.tree.structure(params)
    flat = np.asarray(ravel_pytree(v)[0])
    assert relative(flat, np.linalg.pinv(d) @ rhs.reshape(-1)) < 1e-13 * sigma[0] / sigma[-1]


def test_lift_is_the_same_inside_and_outside_of_jit():
    problem, params = linear(with_singular_values(5, 9, np.array([1.0, 0.5, 0.2])))  # rank 3: it climbs
    rhs = jnp.arange(1.0, 6.0)
    seen = []

    def both(params, rhs, damping):
        v, info = lift(Differential(problem, params), rhs, damping=damping)
        seen.append((info.method, info.why, str(info)))
        return v, info

    v, info = jax.jit(both)(params, rhs, 0.0)
    eager, again = lift(Differential(problem, params), rhs)
    assert relative(v, np.asarray(eager)) < 1e-13
    assert (info.method, info.rank, info.why) == (again.method, again.rank, again.why) == ("svd", 3, info.why)
    assert "2 singular values were too small" in info.why
    assert all("Trace" in text for text in seen[0])


@pytest.mark.parametrize(("method", "shape"), [("qr", WIDE), ("qr", TALL), ("refined", WIDE), ("lsmr", TALL)])
def test_a_factor_leaves_jit_and_serves_many_solves(method, shape):
    d = with_singular_values(*shape, np.linspace(1, 2, 6))
    problem, params = linear(d)
    factor = eqx.filter_jit(lambda: factorize(Differential(problem, params + 1.0), method=method))()
    np.testing.assert_allclose(factor.value, d.sum(axis=1), rtol=1e-13)
    assert factor.sigma_max == pytest.approx(2.0, rel=0.01)
    for damping in (0.0, 0.3):
        at = eqx.filter_jit(lambda factor, damping: factor.at(damping))(factor, damping)
        for rhs in np.eye(shape[0])[:2]:
            v = eqx.filter_jit(lambda at, rhs: at.solve(rhs))(at, rhs)
            expected = d.T @ np.linalg.pinv(d @ d.T + damping * np.eye(shape[0]), rcond=1e-12) @ rhs
            np.testing.assert_allclose(v, expected, atol=1e-12)
    z = jnp.arange(1.0, shape[0] + 1)
    np.testing.assert_allclose(factor.jvp(factor.vjp(z)), d @ d.T @ z, rtol=1e-12)


def test_the_ladder_follows_the_memory_budget_and_what_breaks_down():
    m, k, rng = 20, 90, np.random.default_rng(0)
    bytes_of = 8
    rhs = rng.normal(size=m)
    healthy = with_singular_values(m, k, np.linspace(1, 2, m))
    steep = with_singular_values(m, k, np.logspace(0, -9, m))
    deficient = with_singular_values(m, k, np.linspace(1, 2, m - 3))
    gram_alone = m * m * bytes_of + 1
    for matrix, budget, method, rank in (
        (healthy, 2**30, "qr", m),
        (deficient, 2**30, "svd", m - 3),
        (healthy, gram_alone, "refined", m),
        (steep, gram_alone, "pcg", -1),
        (deficient, gram_alone, "eigh", m - 3),
        (healthy, 100, "lsmr", -1),
    ):
        problem, params = linear(matrix, memory_budget=budget)
        v, info = fb.tangent.minimum_norm(problem, params, rhs)
        assert (info.method, info.rank) == (method, rank)
        assert relative(v, np.linalg.pinv(matrix, rcond=1e-12) @ rhs) < (1e-6 if matrix is steep else 1e-11)
    tall, params = linear(healthy.T, memory_budget=100)
    v, info = fb.tangent.minimum_norm(tall, params, np.ones(k))
    assert info.method == "lsmr"
    assert relative(v, np.linalg.pinv(healthy.T) @ np.ones(k)) < 1e-11


def test_a_gram_matrix_that_is_not_enough_leads_to_the_jacobian(monkeypatch):
    monkeypatch.setattr("fibration.tangent._minimum_norm._CHEAP", 0)
    compiled = eqx.filter_jit(lambda differential, rhs: lift(differential, jnp.asarray(rhs)))
    rhs = np.random.default_rng(0).normal(size=7)
    for sigma, method in ((np.linspace(1, 2, 7), "refined"), (np.logspace(0, -9, 7), "qr"), (np.ones(4), "svd")):
        d = with_singular_values(7, 13, sigma)
        v, info = compiled(Differential(*linear(d)), rhs)
        assert info.method == method
        assert info.climbed == (method != "refined")
        assert relative(v, np.linalg.pinv(d, rcond=1e-12) @ rhs) < 1e-6


def test_small_singular_values_are_dropped_on_demand():
    d = with_singular_values(6, 11, np.logspace(0, -5, 6))
    rhs = np.ones(6)
    for method in ("auto", "svd", "eigh"):
        v, info = fb.tangent.minimum_norm(*linear(d), rhs, method=method, rtol=3e-3)
        assert info.rank == 3
        assert info.sigma_min == pytest.approx(1e-2, rel=1e-9)
        # What is kept is told from what is not by the gap between singular values, or between their squares.
        assert relative(v, np.linalg.pinv(d, rcond=3e-3) @ rhs) < (1e-11 if method == "eigh" else 1e-13)


def test_nothing_to_solve_and_nothing_to_solve_with():
    problem, params = linear(np.zeros((6, 11)))
    v, info = fb.tangent.minimum_norm(problem, params, np.ones(6))
    assert (info.rank, info.residual, info.condition) == (0, 1.0, np.inf)
    assert np.all(v == 0)
    v, info = fb.tangent.minimum_norm(*linear(np.eye(6, 11)), np.zeros(6))
    assert np.all(v == 0)
    assert info.residual == 0


def test_stacked_problems_and_leaves_that_are_no_coordinates():
    block = fb.Problem(lambda p, x: p["w"] @ x * p["n"], np.eye(3), np.zeros((3, 2)))
    problem = fb.stack([block, fb.Problem(lambda p, x: p["w"] @ x, np.ones((1, 3)), np.zeros((1, 2)))])
    params = {"w": jnp.ones((2, 3)), "n": 2}
    rhs = np.arange(6.0).reshape(3, 2), np.array([[1.0, 2.0]])
    v, info = fb.tangent.minimum_norm(problem, params, rhs)
    d = np.asarray(fb.tangent.jacobian(problem, params))
    assert v["n"] is None
    assert (info.rank, info.needed) == (6, 8)
    np.testing.assert_allclose(v["w"].reshape(-1), np.linalg.pinv(d) @ np.concatenate([r.reshape(-1) for r in rhs]))


def test_bad_input_is_named():
    problem, params = linear(np.eye(4))
    solve = fb.tangent.minimum_norm
    for shape in ((5,), (1, 4), (2, 2)):
        with pytest.raises(fb.errors.ShapeError, match=r"rhs has shape"):
            solve(problem, params, np.ones(shape))
    with pytest.raises(fb.errors.NonFiniteDataError, match="rhs"):
        solve(problem, params, np.array([1.0, np.nan, 0, 0]))
    for damping in (-1.0, np.nan):
        with pytest.raises(fb.errors.ParameterError, match="damping"):
            solve(problem, params, np.ones(4), damping)
    with pytest.raises(fb.errors.UnknownNameError, match="cholesky"):
        solve(problem, params, np.ones(4), method="cholesk")
    with pytest.raises(fb.errors.ParameterError, match="rtol"):
        solve(problem, params, np.ones(4), method="qr", rtol=1e-3)
    with pytest.raises(fb.errors.MemoryBudgetError, match="rtol"):
        solve(*linear(np.eye(4), memory_budget=10), np.ones(4), rtol=1e-3)
    with pytest.raises(fb.errors.ApplyError):
        solve(fb.Problem(lambda w, x: x @ w[None].T, np.eye(4), np.zeros((4, 2))), params, np.ones((4, 2)))
    with pytest.raises(fb.errors.NonFiniteDataError, match="finite derivatives"):
        solve(fb.Problem(lambda w, x: jnp.sqrt(x @ w), np.eye(4), np.zeros((4, 1))), params, np.ones(4))


def test_float32_is_warned_of_with_numbers():
    d = with_singular_values(7, 9, np.logspace(0, -6.3, 7))
    problem, params = linear(d, np.float32)
    with pytest.warns(PrecisionWarning, match=r"epsilon 1\.2e-07.*jax_enable_x64"):
        fb.tangent.minimum_norm(problem, params, np.ones(7, np.float32))
    assert inner is problem.apply
