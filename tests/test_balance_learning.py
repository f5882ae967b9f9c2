import itertools

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

import fibration as fb
from fibration.balance import end_to_end, factor, imbalance, moment_map, partial_products, regularizer
from fibration.balance._costs import completion, factored, regression
from fibration.balance._dual import dual_multiplier, fibre_velocity
from fibration.balance._fast_slow import fast_slow
from fibration.balance._learning import LearningFlow, metric, preconditioner
from fibration.errors import ParameterError, ShapeError, SingularProductError
from fibration.solvers import solve

SEEDS = st.integers(0, 2**31 - 1)
SHAPES = st.sampled_from([(3, 3, 2), (2, 4, 3), (4, 3, 6)])  # (m, n, depth): every new one is compiled
FIELDS = st.sampled_from(["real", "complex"])


def gaussian(rng, *shape, field="real"):
    drawn = rng.normal(size=shape)
    return drawn + 1j * rng.normal(size=shape) if field == "complex" else drawn


def of_rank(rng, m, n, rank, field="real"):
    return gaussian(rng, m, rank, field=field) @ gaussian(rng, rank, n, field=field)


def chain(seed, widths, field="real"):
    rng = np.random.default_rng(seed)
    return [gaussian(rng, m, n, field=field) / np.sqrt(n) for n, m in itertools.pairwise(widths)]


def dense_operator(Ws):
    """A_W as a matrix on vec(L), by its definition."""
    S, T = partial_products([np.asarray(W) for W in Ws])
    below, above = S[:-1], T[1:]
    return sum(np.kron(t @ t.conj().T, (s.conj().T @ s).T) for s, t in zip(below, above, strict=True))


# The preconditioner and the metric


@settings(max_examples=40, deadline=None)
@given(SEEDS, SHAPES, FIELDS, st.data())
def test_preconditioner_is_the_operator_of_every_balanced_chain(seed, shape, field, data):
    m, n, depth = shape
    rank = data.draw(st.integers(1, min(m, n)))
    rng = np.random.default_rng(seed)
    X, Z = of_rank(rng, m, n, rank, field), gaussian(rng, m, n, field=field)
    S, T = partial_products(factor(X, (n, *[rank + p % 3 for p in range(1, depth)], m)))
    expected = sum(t @ t.conj().T @ Z @ s.conj().T @ s for s, t in zip(S[:-1], T[1:], strict=True))
    found = preconditioner(X, Z, depth)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-13 * np.linalg.norm(expected))


def test_preconditioner_of_depth_one_is_the_identity_and_of_depth_two_is_by_square_roots():
    rng = np.random.default_rng(0)
    X, Z = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    np.testing.assert_array_equal(preconditioner(X, Z, 1), Z)
    roots = [scipy.linalg.sqrtm(gram).real for gram in (X @ X.T, X.T @ X)]
    np.testing.assert_allclose(preconditioner(X, Z, 2), roots[0] @ Z + Z @ roots[1], atol=1e-7)  # sqrtm of a singular


@settings(max_examples=30, deadline=None)
@given(SEEDS, SHAPES, FIELDS, st.booleans())
def test_derivative_of_the_preconditioner_at_repeated_singular_values(seed, shape, field, deficient):
    """Along a curve of matrices of one rank, by Richardson's central differences."""
    rng = np.random.default_rng(seed)
    m, n, depth = shape
    rank = min(m, n) - deficient
    Q, P = (np.linalg.qr(gaussian(rng, d, d, field=field))[0][:, :rank] for d in (m, n))
    dQ, dP = gaussian(rng, m, rank, field=field), gaussian(rng, n, rank, field=field)
    Z, dZ = gaussian(rng, m, n, field=field), gaussian(rng, m, n, field=field)

    def X(t):
        return (Q + t * dQ) @ (P + t * dP).conj().T

    def central(h):
        return (preconditioner(X(h), Z + h * dZ, depth) - preconditioner(X(-h), Z - h * dZ, depth)) / (2 * h)

    dX = dQ @ P.conj().T + Q @ dP.conj().T
    primals, tangents = ((jnp.asarray(a), jnp.asarray(b)) for a, b in ((X(0), Z), (dX, dZ)))
    _, found = jax.jvp(lambda X, Z: preconditioner(X, Z, depth), primals, tangents)
    expected = (4 * central(1e-3) - central(2e-3)) / 3
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 * np.linalg.norm(expected))


def test_derivative_of_the_preconditioner_where_that_of_the_svd_is_nan():
    X, Z, dX = jnp.eye(3), jnp.ones((3, 3)), jnp.diag(jnp.array([1.0, 2.0, 3.0]))
    _, found = jax.jvp(lambda X: preconditioner(X, Z, 2), (X,), (dX,))  # σ_i + σ_j
    np.testing.assert_allclose(found, [[2, 3, 4], [3, 4, 5], [4, 5, 6]], rtol=1e-14)


@settings(max_examples=30, deadline=None)
@given(SEEDS, SHAPES, FIELDS, st.data())
def test_learning_flow_is_the_gradient_flow_of_the_metric(seed, shape, field, data):
    m, n, depth = shape
    rank = data.draw(st.integers(1, min(m, n)))
    rng = np.random.default_rng(seed)
    X, gradient = of_rank(rng, m, n, rank, field), gaussian(rng, m, n, field=field)
    U, _, Vh = np.linalg.svd(X)
    normal = [U[:, rank:] @ U[:, rank:].conj().T, Vh[rank:].conj().T @ Vh[rank:]]
    Y = gaussian(rng, m, n, field=field)
    Y = Y - normal[0] @ Y @ normal[1]
    velocity = LearningFlow(lambda _: gradient, depth)(0.0, X)
    differential = np.sum(Y.conj() * gradient).real
    # A(Z) is tangent to rounding, but X may be ill-conditioned: A's inverse divides by λ².
    scale = np.linalg.norm(Y) * np.linalg.norm(gradient) * np.linalg.cond(U[:, :rank].conj().T @ X) ** 2
    np.testing.assert_allclose(metric(X, Y, velocity, depth), -differential, rtol=0, atol=1e-13 * scale)
    assert metric(X, Y, Y, depth) > 0


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_weight_decay_on_the_balanced_manifold_is_a_shrinking_product(depth):
    """A(U Σ^{2/N − 1} V*) = N X, which makes λNX the gradient of λR*."""
    rng = np.random.default_rng(depth)
    X = rng.normal(size=(3, 5))
    U, s, Vh = np.linalg.svd(X, full_matrices=False)
    np.testing.assert_allclose(preconditioner(X, (U * s ** (2 / depth - 1)) @ Vh, depth), depth * X, rtol=1e-12)


def test_metric_refuses_vectors_that_raise_the_rank():
    X = np.diag([2.0, 0.0])
    assert float(metric(X, X, X, 2)) == 1.0
    with pytest.raises(SingularProductError, match="raises the rank"):
        metric(X, X, np.eye(2), 2)


# The learning flow


def singular_rates(gradient, depth, X):
    """σ_i' = −N σ_i^{2 − 2/N} Re⟨u_i, dE v_i⟩."""
    U, s, Vh = np.linalg.svd(X, full_matrices=False)
    return -depth * s ** (2 - 2 / depth) * np.einsum("ik,ij,kj->k", U.conj(), gradient(X), Vh.conj()).real


@settings(max_examples=20, deadline=None)
@given(SEEDS, SHAPES, FIELDS)
def test_rates_of_singular_values(seed, shape, field):
    m, n, depth = shape
    rng = np.random.default_rng(seed)
    X, Y = gaussian(rng, m, n, field=field), gaussian(rng, m, n, field=field)
    U, _, Vh = np.linalg.svd(X, full_matrices=False)
    velocity = np.asarray(LearningFlow(lambda X: X - Y, depth)(0.0, X))
    found = np.einsum("ik,ij,kj->k", U.conj(), velocity, Vh.conj()).real
    np.testing.assert_allclose(found, singular_rates(lambda X: X - Y, depth, X), rtol=1e-11, atol=1e-11)


TIGHT = {"rtol": 1e-11, "atol": 1e-13, "method": "dopri8"}


@pytest.mark.parametrize(("widths", "rank"), [((4, 3, 5, 3), 3), ((5, 4, 2), 2), ((4, 4, 4, 4), 2)])
def test_learning_flow_is_the_gradient_flow_of_the_balanced_chain(widths, rank):
    rng = np.random.default_rng(7)
    problem = regression(rng.normal(size=(9, widths[0])), rng.normal(size=(9, widths[-1])))
    X = of_rank(rng, widths[-1], widths[0], rank) / 2
    Ws, depth = factor(X, widths, "haar", jax.random.key(1)), len(widths) - 1
    above = fb.integrate(factored(problem), fb.GradientFlow(), Ws, 2.0, times=[0.5, 2.0], **TIGHT)
    below = solve(LearningFlow(problem.gradient, depth, rank=rank), jnp.asarray(X), 2.0, times=[0.5, 2.0], **TIGHT)
    for t in range(2):
        saved = [W[t] for W in above.params]
        np.testing.assert_allclose(below.params[t], end_to_end(saved), rtol=0, atol=1e-10)
        assert max(np.abs(G).max() for G in imbalance(saved)) < 1e-10
        values = np.linalg.svd(end_to_end(saved), compute_uv=False)
        assert np.all(values[rank:] < 3e-15 * values[0])  # the rank is kept, to rounding
        assert values[rank - 1] > 1e-3


def test_learning_flow_of_a_complex_matrix_is_that_of_the_complex_chain():
    rng = np.random.default_rng(3)
    X, Y = gaussian(rng, 2, 3, field="complex"), gaussian(rng, 2, 3, field="complex")
    weights = rng.uniform(0.5, 2.0, size=(2, 3))
    Ws = [jnp.asarray(W) for W in factor(X, (3, 4, 2, 2), "haar", jax.random.key(0))]

    def cost(Ws):
        return 0.5 * jnp.sum(weights * jnp.abs(end_to_end(Ws) - Y) ** 2)

    above = solve(lambda _, Ws: jax.tree.map(lambda g: -g.conj(), jax.grad(cost)(Ws)), Ws, 1.0, times=[1.0], **TIGHT)
    below = solve(LearningFlow(lambda X: weights * (X - Y), 3), jnp.asarray(X), 1.0, times=[1.0], **TIGHT)
    np.testing.assert_allclose(below.final_params, end_to_end(above.final_params), rtol=0, atol=1e-10)


def test_the_sign_of_the_determinant_is_kept_so_that_a_target_of_the_other_sign_is_not_reached():
    flow = LearningFlow(lambda X: X - jnp.diag(jnp.array([2.0, -1.0])), 3)
    run = solve(flow, jnp.diag(jnp.array([1.0, 0.5])) + 0.1, 50.0, rtol=1e-8, method="dopri8")
    determinants = np.linalg.det(run.params)
    assert np.all(determinants > 0)
    assert determinants[-1] < 1e-3
    np.testing.assert_allclose(run.params[-1], np.diag([2.0, 0.0]), atol=0.05)


def test_learning_flow_in_closed_form_for_a_scalar():
    """x' = −N x^{2 − 2/N}(x − y): for N = 2 a logistic equation."""
    run = solve(LearningFlow(lambda X: X - 3.0, 2), jnp.array([[0.1]]), 2.0, **TIGHT)
    expected = 3 / (1 + (3 / 0.1 - 1) * np.exp(-6 * run.times))
    np.testing.assert_allclose(run.params[:, 0, 0], expected, rtol=1e-8)


@pytest.mark.parametrize("method", ["auto", "rock4"])
def test_stabilised_methods_differentiate_the_field_at_repeated_singular_values(method):
    """From a multiple of the identity, where the derivative of a singular value decomposition is NaN."""
    Y = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
    run = solve(LearningFlow(lambda X: X - Y, 2), 0.5 * jnp.eye(3), 1.0, rtol=1e-5, atol=1e-8, method=method)
    y = np.array([3.0, 2.0, 1.0])
    np.testing.assert_allclose(np.diag(run.params[-1]), y / (1 + (y / 0.5 - 1) * np.exp(-2 * y)), rtol=1e-4)


def test_matrix_completion_in_one_solver_call():
    rows, columns = np.nonzero(~np.eye(4, dtype=bool))
    truth = np.outer([1.0, 2.0, 0.5, 1.0], [1.0, 0.5, 1.0, 2.0])
    problem = completion(rows, columns, truth[rows, columns])
    start = 1e-3 * np.random.default_rng(0).normal(size=(4, 4))
    run = solve(LearningFlow(problem.gradient, 3), jnp.asarray(start), 3e4, rtol=1e-5)
    np.testing.assert_allclose(run.final_params, truth, atol=0.02)  # the diagonal was never seen


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: LearningFlow(lambda X: X, 0), ParameterError),
        (lambda: LearningFlow(lambda X: X, 2, rank=0), ParameterError),
        (lambda: preconditioner(np.eye(2), np.eye(3), 2), ShapeError),
        (lambda: preconditioner(np.eye(2), np.eye(2), 0), ParameterError),
        (lambda: preconditioner(np.ones(3), np.ones(3), 2), ShapeError),
        (lambda: metric(np.eye(2), np.eye(2), np.eye(3), 2), ShapeError),
    ],
)
def test_bad_input_of_the_learning_flow(make, error):
    with pytest.raises(error):
        make()


# The fast flow along the fibres


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from([(3, 3, 3, 3), (4, 2, 3), (2, 4, 3, 2), (3, 2, 1, 3, 4)]), FIELDS)
def test_fibre_velocity_is_the_projection_on_the_kernel(seed, widths, field):
    Ws = chain(seed, widths, field)
    L = np.asarray(dual_multiplier(Ws))
    operator, depth = dense_operator(Ws), len(Ws)
    b = depth * end_to_end(Ws).ravel()
    expected = (np.linalg.lstsq(operator, b)[0]).reshape(L.shape)
    S, T = partial_products(Ws)
    velocity = fibre_velocity(Ws)
    for p, (W, v) in enumerate(zip(Ws, velocity, strict=True)):
        n = T[p + 1].conj().T @ expected @ S[p].conj().T
        np.testing.assert_allclose(v, n - W, rtol=0, atol=1e-9 * max(1, np.linalg.norm(n)))
    # W − n is in the kernel of dφ, and n is orthogonal to it; imbalances shrink by 2 whatever L is.
    moved = sum(T[p + 1] @ np.asarray(v) @ S[p] for p, v in enumerate(velocity))
    assert np.linalg.norm(moved) < 1e-12 * depth * max(1, np.prod([np.linalg.norm(W) for W in Ws]))
    rates = [V @ W.conj().T + W @ V.conj().T for V, W in zip(map(np.asarray, velocity), Ws, strict=True)]
    after = [W.conj().T @ V + V.conj().T @ W for V, W in zip(map(np.asarray, velocity), Ws, strict=True)]
    for p, mu in enumerate(moment_map(Ws)):
        np.testing.assert_allclose(rates[p] - after[p + 1], -2 * mu, rtol=0, atol=1e-12 * max(1, regularizer(Ws)))


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.just(3), st.sampled_from([2, 4]), FIELDS)
def test_energy_of_the_normal_part_is_largest_at_balance(seed, d, depth, field):
    """⟨X, L⟩ = N⟨X, A_W⁻¹X⟩ ≤ N⟨X, A_{N,X}⁻¹X⟩ = Σ σ^{2/N}, with equality at balance."""
    Ws = chain(seed, [d] * (depth + 1), field)
    X = end_to_end(Ws)
    highest = np.sum(np.linalg.svd(X, compute_uv=False) ** (2 / depth))
    assert np.sum(X.conj() * np.asarray(dual_multiplier(Ws))).real <= highest * (1 + 1e-10)
    balanced = factor(X, [d] * (depth + 1))
    found = np.sum(X.conj() * np.asarray(dual_multiplier(balanced))).real
    np.testing.assert_allclose(found, highest, rtol=1e-9)
    assert max(np.linalg.norm(v) for v in fibre_velocity(balanced)) < 1e-9 * highest


def test_for_two_factors_the_multiplier_solves_a_sylvester_equation():
    rng = np.random.default_rng(0)
    A, B = 30 * rng.normal(size=(3, 4)), rng.normal(size=(5, 3))  # out of balance, and singular: rank 3 of 4, 5
    W1, W2 = A @ np.diag([1, 2, 3, 4.0]), B
    L = np.asarray(dual_multiplier([W1, W2]))
    left, right = W2 @ W2.T, W1.T @ W1
    np.testing.assert_allclose(left @ L + L @ right, 2 * W2 @ W1, rtol=0, atol=1e-12 * np.linalg.norm(W2 @ W1))
    square = [W1[:, :3], W2[:3]]
    expected = scipy.linalg.solve_sylvester(square[1] @ square[1].T, square[0].T @ square[0], 2 * square[1] @ square[0])
    np.testing.assert_allclose(dual_multiplier(square), expected, rtol=1e-9, atol=1e-12)


def test_dual_solve_forms_no_matrix_of_the_fourth_power():
    Ws = [jnp.ones((20, 20))] * 3

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (getattr(v.aval, "size", 0) for v in equation.outvars)
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from sizes(inner)

    assert max(sizes(jax.make_jaxpr(dual_multiplier)(Ws).jaxpr)) <= 3 * 20**2


def test_fibre_velocity_of_a_zero_product_and_of_a_dead_chain():
    Ws = [np.array([[1.0, 0.0]]), np.array([[0.0], [0.0]])]  # a LoRA adapter before training
    velocity = fibre_velocity(Ws)
    np.testing.assert_allclose(velocity[0], -Ws[0])
    np.testing.assert_allclose(velocity[1], 0)
    assert all(not np.any(v) for v in fibre_velocity([np.zeros((2, 2))] * 3))


@pytest.mark.parametrize("field", ["real", "complex"])
def test_fibre_velocity_can_be_differentiated(field):
    Ws, dWs = chain(0, [3, 4, 2, 3], field), chain(1, [3, 4, 2, 3], field)

    def at(t):
        moved = fibre_velocity([W + t * V for W, V in zip(Ws, dWs, strict=True)])
        return np.concatenate([np.asarray(v).ravel() for v in moved])

    _, found = jax.jvp(fibre_velocity, ([jnp.asarray(W) for W in Ws],), ([jnp.asarray(V) for V in dWs],))
    expected = (8 * (at(1e-3) - at(-1e-3)) - (at(2e-3) - at(-2e-3))) / 12e-3
    np.testing.assert_allclose(np.concatenate([v.ravel() for v in found]), expected, rtol=0, atol=1e-7)


def test_fibre_velocity_can_be_differentiated_at_balance_with_repeated_singular_values():
    Ws = [jnp.eye(3)] * 3
    _, found = jax.jvp(fibre_velocity, (Ws,), (chain_of_jax([0.1, 0.0, 0.0]),))
    # At balance the fibre's Hessian is 2 on the non-compact directions and R is ½|W|²: scalars w = (1 + 0.1s, 1, 1).
    for v, slope in zip(found, (-0.2 / 3, 0.1 / 3, 0.1 / 3), strict=True):
        np.testing.assert_allclose(v, 2 * slope * np.eye(3), atol=1e-12)


def chain_of_jax(factors):
    return [c * jnp.eye(3) for c in factors]


# The fast–slow system

TARGET = np.array([[1.0, 0.4, -0.3], [0.2, -0.8, 0.5], [0.1, 0.6, 0.7]])


def towards_target(X):
    return X - TARGET


@pytest.mark.parametrize(("widths", "field"), [((3, 3, 3, 3), "real"), ((3, 5, 4, 3), "real"), ((3, 2, 3), "complex")])
def test_imbalance_decays_as_exp_of_minus_two_t_over_epsilon(widths, field):
    Ws, epsilon = chain(2, widths, field), 0.3
    run = fast_slow(Ws, towards_target, epsilon, 1.5, times=np.linspace(0, 1.5, 7), **TIGHT)
    moments = run.observed["moment_map"]
    start = np.concatenate([mu.ravel() for mu in moment_map(Ws)])
    np.testing.assert_allclose(moments[0], start, rtol=1e-14)
    expected = np.exp(-2 * run.times / epsilon)[:, None] * start
    np.testing.assert_allclose(moments, expected, rtol=0, atol=3e-10 * np.linalg.norm(start))
    last = [W[-1] for W in run.params]
    np.testing.assert_allclose(run.observed["end_to_end"][-1], end_to_end(last), rtol=1e-13)
    np.testing.assert_allclose(run.observed["regularizer"][-1], regularizer(last), rtol=1e-13)


def test_the_limit_of_the_fast_slow_system_is_the_learning_flow_with_order_one():
    Ws, times = chain(5, [3, 3, 3, 3]), [1.5]
    slow = solve(LearningFlow(towards_target, 3), jnp.asarray(end_to_end(Ws)), 1.5, times=times, **TIGHT)
    epsilons = np.array([0.04, 0.02, 0.01, 0.005])
    runs = [fast_slow(Ws, towards_target, e, 1.5, times=times, rtol=1e-8, atol=1e-10) for e in epsilons]
    errors = [np.linalg.norm(run.observed["end_to_end"][-1] - slow.params[-1]) for run in runs]
    order = np.polyfit(np.log(epsilons), np.log(errors), 1)[0]
    assert 0.93 < order < 1.07, (order, errors)
    assert errors[-1] < 0.05


def test_without_balancing_the_product_does_not_follow_the_learning_flow():
    Ws = chain(5, [3, 3, 3, 3])
    slow = solve(LearningFlow(towards_target, 3), jnp.asarray(end_to_end(Ws)), 1.5, times=[1.5], **TIGHT)
    run = fast_slow(Ws, towards_target, 1e6, 1.5, times=[1.5], rtol=1e-8)
    assert np.linalg.norm(run.observed["end_to_end"][-1] - slow.params[-1]) > 0.05


def test_fast_slow_refuses_an_epsilon_that_is_not_positive():
    Ws = chain(0, [2, 2, 2])
    for epsilon in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ParameterError, match="epsilon"):
            fast_slow(Ws, lambda X: X, epsilon, 1.0)
