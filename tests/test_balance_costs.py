import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

import fibration as fb
from fibration.balance import end_to_end, factor, imbalance
from fibration.balance._costs import completion, factored, regression, sensing, shrinkage
from fibration.balance._learning import LearningFlow
from fibration.balance._rebalance import imbalance_step, rebalance
from fibration.errors import ApplyError, IntegerDataError, ParameterError, ShapeError
from fibration.flows import WeightDecay
from fibration.solvers import solve

SEEDS = st.integers(0, 2**31 - 1)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3))
INPUTS, TARGETS = RNG.normal(size=(7, 3)), RNG.normal(size=(7, 2))
MEASUREMENTS, VALUES = RNG.normal(size=(5, 2, 3)), RNG.normal(size=5)
ROWS, COLUMNS = np.array([0, 1, 1, 0]), np.array([2, 0, 2, 2])


def chain(seed, widths):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(m, n)) / np.sqrt(n)) for n, m in itertools.pairwise(widths)]


def approximation(Y):
    """E = ½‖X − Y‖²."""
    return regression(np.eye(Y.shape[1]), Y.T, weights=np.full(Y.shape[1], float(Y.shape[1])))


# Costs


def test_costs_and_gradients_by_their_formulas():
    problem, residual = regression(INPUTS, TARGETS), INPUTS @ X.T - TARGETS
    np.testing.assert_allclose(problem.cost(X), np.sum(residual**2) / 14, rtol=1e-14)
    np.testing.assert_allclose(problem.gradient(jnp.asarray(X)), residual.T @ INPUTS / 7, rtol=1e-13)

    problem, known = completion(ROWS, COLUMNS, VALUES[:4]), X[ROWS, COLUMNS] - VALUES[:4]
    expected = np.zeros_like(X)
    np.add.at(expected, (ROWS, COLUMNS), known / 4)  # an entry that is known twice counts twice
    np.testing.assert_allclose(problem.cost(X), np.sum(known**2) / 8, rtol=1e-14)
    np.testing.assert_allclose(problem.gradient(jnp.asarray(X)), expected, rtol=1e-13)

    problem, measured = sensing(MEASUREMENTS, VALUES), np.einsum("kij,ij->k", MEASUREMENTS, X) - VALUES
    np.testing.assert_allclose(problem.cost(X), np.sum(measured**2) / 10, rtol=1e-14)
    expected = np.einsum("kij,k->ij", MEASUREMENTS, measured) / 5
    np.testing.assert_allclose(problem.gradient(jnp.asarray(X)), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "problem",
    [
        regression(INPUTS, TARGETS),
        regression(INPUTS, TARGETS, weights=np.arange(7.0)),
        regression(INPUTS, np.array([0, 1, 1, 0, 1, 0, 0]), loss=fb.CrossEntropy(n_classes=2)),
        completion(ROWS, COLUMNS, VALUES[:4]),
        sensing(MEASUREMENTS, VALUES),
        fb.Problem(lambda X, x: jnp.sin(X @ x), INPUTS, TARGETS),
        fb.stack([regression(INPUTS, TARGETS), sensing(MEASUREMENTS, VALUES)]),
    ],
)
def test_factored_costs_are_those_of_the_product(problem):
    Ws, chained = chain(1, (3, 4, 1, 2)), factored(problem)
    assert type(chained) is type(problem)
    product = end_to_end(Ws)
    chained.check(Ws)
    np.testing.assert_allclose(chained.cost(Ws), problem.cost(product), rtol=1e-13)
    gradient = problem.gradient(product)
    after = [Ws[2] @ Ws[1], Ws[2], jnp.eye(2)]
    before = [jnp.eye(3), Ws[0], Ws[1] @ Ws[0]]
    for found, T, S in zip(chained.gradient(Ws), after, before, strict=True):
        np.testing.assert_allclose(found, T.T @ gradient @ S.T, rtol=1e-11, atol=1e-13)


def test_factored_applies_share_compilations_and_regression_forms_no_product():
    first, second = factored(regression(INPUTS, TARGETS)), factored(regression(INPUTS, 2 * TARGETS))
    assert first.apply == second.apply
    assert hash(first.apply) == hash(second.apply)
    narrow = factored(regression(np.ones((2, 50)), np.ones((2, 40))))
    jaxpr = jax.make_jaxpr(lambda Ws: narrow.apply(Ws, jnp.ones(50)))([jnp.ones((1, 50)), jnp.ones((40, 1))])
    assert max(v.aval.size for equation in jaxpr.eqns for v in equation.outvars) <= 50


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: completion([0.5], [1], [1.0]), IntegerDataError),
        (lambda: completion([-1], [1], [1.0]), ParameterError),
        (lambda: completion([0, 1], [1], [1.0]), ShapeError),
        (lambda: completion([[0]], [[1]], [1.0]), ShapeError),
        (lambda: completion([5], [0], [1.0]).check(X), ApplyError),
        (lambda: completion([0], [3], [1.0]).check(X), ApplyError),
        (lambda: completion([0, 1], [1, 1], [1.0]), ShapeError),
        (lambda: sensing(np.ones((2, 3)), np.ones(2)), ShapeError),
        (lambda: sensing(np.ones((2, 3, 3)), np.ones(2)).check(X), ApplyError),
        (lambda: regression(INPUTS[:, :2], TARGETS).check(X), ApplyError),
        (lambda: shrinkage([-1.0], 1.0, 2), ParameterError),
        (lambda: shrinkage([1.0], np.nan, 2), ParameterError),
        (lambda: shrinkage([1.0], 1.0, 0), ParameterError),
        (lambda: rebalance(optax.sgd(0.1), every=0), ParameterError),
        (lambda: imbalance_step([np.eye(3)], [np.ones((2, 3)), np.ones((3, 2))], 0.1), ShapeError),
    ],
)
def test_bad_input(make, error):
    with pytest.raises(error):
        make()


# Shrinkage


def stationary(y, rate, depth):
    """The largest root of s − y + λ s^{2/N − 1}, bracketed by where that is lowest."""
    q = 1 - 2 / depth
    lowest = (rate * q) ** (1 / (1 + q))

    def f(s):
        return s - y + rate * s**-q

    return scipy.optimize.brentq(f, lowest, y, xtol=1e-300, rtol=1e-15) if f(lowest) < 0 else 0.0


@settings(max_examples=200, deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e3), st.integers(3, 12))
def test_shrinkage_is_the_largest_root(y, rate, depth):
    np.testing.assert_allclose(shrinkage([y], rate, depth), [stationary(y, rate, depth)], rtol=1e-7)
    s = shrinkage([y], rate, depth)[0]
    if s:
        assert abs(s - y + rate * s ** (2 / depth - 1)) <= 1e-15 * y * 4


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.floats(0.01, 3.0), st.integers(1, 8))
def test_shrinkage_is_the_lowest_point_where_the_theory_says_so(seed, rate, depth):
    for y in np.random.default_rng(seed).uniform(0, 6, size=5):
        grid = np.linspace(0, y, 20001)
        cost = (grid - y) ** 2 / 2 + rate * depth / 2 * grid ** (2 / depth)
        s = float(shrinkage([y], rate, depth)[0])
        here = (s - y) ** 2 / 2 + rate * depth / 2 * s ** (2 / depth)
        threshold = (rate * (depth - 2)) ** (depth / (2 * depth - 2)) if depth > 2 else 0.0
        if s >= threshold * (1 + 1e-9):
            assert here <= cost.min() + 1e-12
        elif s < threshold * (1 - 1e-9):
            assert cost[0] <= here + 1e-12


def test_shrinkage_in_the_cases_that_have_names():
    y = np.array([[0.0, 0.3], [1.0, 4.0]])
    np.testing.assert_array_equal(shrinkage(y, 0.5, 1), y / 1.5)
    np.testing.assert_array_equal(shrinkage(y, 0.5, 2), np.maximum(y - 0.5, 0))
    np.testing.assert_array_equal(shrinkage(y, 0.0, 5), y)
    # N = 4: u = √s solves u³ − y u + λ = 0.
    roots = [max(np.roots([1, 0, -v, 0.5]).real) ** 2 for v in (1.0 + 0.3, 4.0)]
    np.testing.assert_allclose(shrinkage([1.3, 4.0], 0.5, 4), roots, rtol=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_gradient_flow_with_weight_decay_ends_at_the_shrunken_matrix(depth):
    rng = np.random.default_rng(1)
    U, V = (np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(2))
    y = np.array([3.0, 1.8, 0.3])
    Y, rate = (U * y) @ V.T, 0.5
    problem = approximation(Y) if depth == 1 else factored(approximation(Y))
    start = jnp.asarray(Y) if depth == 1 else [W + 0.05 for W in map(jnp.asarray, factor(Y, [3] * (depth + 1)))]
    run = fb.integrate(problem, WeightDecay(fb.GradientFlow(), rate), start, 60.0, times=[60.0], rtol=1e-9, atol=1e-12)
    limit = run.final_params if depth == 1 else end_to_end(run.final_params)
    np.testing.assert_allclose(limit, (U * shrinkage(y, rate, depth)) @ V.T, rtol=0, atol=4e-9)
    assert (shrinkage(y, rate, depth)[2] == 0) == (depth > 1)


# Discrete steps


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.floats(1e-3, 1.0), st.floats(0.0, 2.0))
def test_imbalance_after_a_step_of_minibatch_descent_is_known_exactly(seed, step_size, rate):
    rng = np.random.default_rng(seed)
    widths = (3, 4, 2, 2)
    Ws = [rng.normal(size=(m, n)) for n, m in itertools.pairwise(widths)]
    for _ in range(2):
        batch = rng.choice(7, 3, replace=False)
        gradients = factored(regression(INPUTS[batch], TARGETS[batch])).gradient(Ws)
        expected = imbalance_step(imbalance(Ws), gradients, step_size, rate)
        Ws = [(1 - step_size * rate) * W - step_size * np.asarray(D) for W, D in zip(Ws, gradients, strict=True)]
        scale = 1 + sum(
            np.linalg.norm(W) ** 2 + step_size**2 * np.linalg.norm(D) ** 2 for W, D in zip(Ws, gradients, strict=True)
        )
        for found, law in zip(imbalance(Ws), expected, strict=True):
            np.testing.assert_allclose(found, law, rtol=0, atol=1e-14 * scale)


def test_imbalance_step_of_complex_matrices():
    rng = np.random.default_rng(2)
    Ws = [rng.normal(size=s) + 1j * rng.normal(size=s) for s in ((4, 3), (2, 4), (2, 2))]
    Y = rng.normal(size=(2, 3)) + 1j

    def cost(Ws):
        return jnp.sum(jnp.abs(end_to_end(Ws) - Y) ** 4)

    gradients = [np.asarray(g.conj()) for g in jax.grad(cost)([jnp.asarray(W) for W in Ws])]
    after = [W - 1e-3 * D for W, D in zip(Ws, gradients, strict=True)]
    for found, law in zip(imbalance(after), imbalance_step(imbalance(Ws), gradients, 1e-3), strict=True):
        np.testing.assert_allclose(found, law, rtol=0, atol=1e-13 * np.linalg.norm(law))


def test_the_law_holds_along_descent_with_weight_decay_but_not_for_other_optimisers():
    problem, Ws, step_size, rate = factored(regression(INPUTS, TARGETS)), chain(3, (3, 3, 3, 2)), 0.05, 0.3

    def mismatch(optimiser):
        run = fb.descend(problem, optimiser, Ws, steps=40)
        worst = 0.0
        for k in range(40):
            before, after = ([W[j] for W in run.params] for j in (k, k + 1))
            gradients = problem.gradient([jnp.asarray(W) for W in before])
            law = imbalance_step(imbalance(before), gradients, step_size, rate)
            worst = max(worst, *(float(jnp.linalg.norm(a - b)) for a, b in zip(imbalance(after), law, strict=True)))
        return worst

    descent = optax.chain(optax.add_decayed_weights(rate), optax.sgd(step_size))
    assert mismatch(descent) < 1e-14
    momentum = optax.chain(optax.add_decayed_weights(rate), optax.sgd(step_size, momentum=0.9))
    assert mismatch(momentum) > 1e-3
    assert mismatch(optax.adamw(step_size, weight_decay=rate)) > 1e-3
    per_layer = optax.chain(optax.add_decayed_weights(rate, mask=[True, False, True]), optax.sgd(step_size))
    assert mismatch(per_layer) > 1e-3


def test_imbalance_does_not_decay_under_weight_decay_of_some_layers_only():
    """The spec's warning: with rates of their own, layers keep or gain imbalance."""
    problem, Ws, rates = factored(regression(INPUTS, TARGETS)), chain(3, (3, 3, 3, 2)), (0.5, 0.0, 0.1)

    def flow(problem, params, time):
        return [-g - rate * W for g, W, rate in zip(problem.gradient(params), params, rates, strict=True)]

    run = fb.integrate(problem, flow, Ws, 3.0, times=[3.0], rtol=1e-9)
    for rate in (*rates, np.mean(rates)):
        law = [np.exp(-2 * rate * 3) * np.asarray(G) for G in imbalance(Ws)]
        gaps = [np.linalg.norm(a - b) for a, b in zip(imbalance(run.final_params), law, strict=True)]
        assert max(gaps) > 0.1


# Splitting


@pytest.mark.parametrize(("every", "gauge"), [(1, "svd"), (3, "nearest")])
def test_rebalanced_descent_is_descent_followed_by_balancing(every, gauge):
    problem, Ws = factored(regression(INPUTS, TARGETS)), chain(4, (3, 3, 2, 2))
    run = fb.descend(problem, rebalance(optax.sgd(0.1), every=every, gauge=gauge), Ws, steps=6)
    current = Ws
    for k in range(1, 7):
        current = [W - 0.1 * D for W, D in zip(current, problem.gradient(current), strict=True)]
        saved = [W[k] for W in run.params]
        np.testing.assert_allclose(end_to_end(saved), end_to_end(current), rtol=0, atol=1e-13)
        size = max(float(np.abs(G).max()) for G in imbalance(saved))
        assert size < 1e-14 if k % every == 0 else size > 1e-5
        current = [jnp.asarray(W) for W in saved]


def test_splitting_is_the_learning_flow_with_order_one():
    Ws, problem = chain(5, (3, 3, 3, 3)), approximation(np.diag([1.0, -0.7, 0.4]) + 0.2)
    flow = solve(LearningFlow(problem.gradient, 3), end_to_end(Ws), 1.0, times=[1.0], rtol=1e-10, atol=1e-12)
    steps = np.array([100, 200, 400, 800])
    errors = []
    for n in steps:
        run = fb.descend(factored(problem), rebalance(optax.sgd(1 / n)), Ws, steps=int(n), save_every=int(n))
        errors.append(np.linalg.norm(end_to_end(run.final_params) - flow.params[-1]))
    order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert 0.95 < order < 1.05, (order, errors)


def test_rebalanced_leaves_the_optimiser_inside_alone_and_asks_for_parameters():
    Ws = chain(6, (2, 3, 2))
    optimiser = rebalance(optax.adam(0.1), every=2)
    state = optimiser.init(Ws)
    gradients = [jnp.ones_like(W) for W in Ws]
    _, state = optimiser.update(gradients, state, Ws)
    expected = optax.adam(0.1).update(gradients, optax.adam(0.1).init(Ws), Ws)[1]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), state.inner, expected))
    with pytest.raises(ParameterError, match="without parameters"):
        optimiser.update(gradients, state)


# Weight decay


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("widths", [(3, 4, 2), (2, 5, 3, 4, 2)])
def test_imbalance_decays_under_weight_decay_whatever_the_cost(widths, rate):
    rng = np.random.default_rng(0)
    Ws = chain(4, widths)
    problem = fb.Problem(
        fb.networks.deep_linear(widths, key=jax.random.key(0))[0],
        rng.normal(size=(12, widths[0])),
        rng.integers(0, widths[-1], size=12),
        loss=fb.CrossEntropy(n_classes=widths[-1]),
    )
    flow = WeightDecay(fb.GradientFlow(), rate)
    run = fb.integrate(problem, flow, Ws, 2.0, times=[1.0, 2.0], rtol=1e-12, atol=1e-14, method="dopri8")
    for t, time in enumerate(run.times):
        for found, start in zip(imbalance([W[t] for W in run.params]), imbalance(Ws), strict=True):
            expected = np.exp(-2 * rate * time) * start
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.linalg.norm(start))


def test_weight_decay_is_the_gradient_flow_of_the_regularised_cost_and_euler_is_descent_with_decay():
    problem = fb.Problem(lambda p, x: p["w"] * x + p["b"], jnp.array([1.0, 2.0]), jnp.array([2.0, -1.0]))
    params = {"w": jnp.array(0.7), "b": jnp.array(-0.2), "n": 3}
    velocity = WeightDecay(fb.GradientFlow(), 0.3)(problem, params)
    gradient = problem.gradient(params)
    assert velocity["n"] is None
    for name in ("w", "b"):
        np.testing.assert_allclose(velocity[name], -gradient[name] - 0.3 * params[name], rtol=1e-15)
    run = fb.descend(problem, WeightDecay(fb.GradientFlow(), 0.3), params, step_size=0.1, steps=1)
    np.testing.assert_allclose(run.params["w"][-1], (1 - 0.03) * 0.7 - 0.1 * gradient["w"], rtol=1e-15)
    for rate in (-1.0, np.nan, np.inf):
        with pytest.raises(ParameterError, match="rate"):
            WeightDecay(fb.GradientFlow(), rate)


def test_weight_decay_counts_the_gradients_of_the_flow_inside():
    class Twice(fb.flows.AbstractFlow):
        gradient_evaluations = 2

        def __call__(self, problem, params, time=0.0):
            return problem.gradient(params)

    assert WeightDecay(Twice(), 0.1).gradient_evaluations == 2
    assert WeightDecay(lambda problem, params, time: params, 0.1).gradient_evaluations == 1
