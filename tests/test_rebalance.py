"""Optimisers that balance every few steps, and what they remember when they do."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fibration as fb
from chains import chain, norm
from fibration.balance._layers._transport import transport_gradients, transport_state
from fibration.balance._rebalance import rebalance
from fibration.errors import ParameterError, ShapeError, UnknownNameError

B = fb.balance


def jax_chain(seed, widths):
    return [jnp.asarray(W) for W in chain(seed, widths)]


def group(seed, widths, field="real"):
    rng = np.random.default_rng(seed)
    return [np.eye(d) + 0.4 * next(iter(chain(int(rng.integers(1e9)), (d, d), field))) for d in widths[1:-1]]


def gradients_at(Ws, E):
    """D_p = T_p* E S_{p−1}*, the gradients of Re tr(E* X)."""
    S, T = B.partial_products(Ws)
    return [T[p + 1].conj().T @ E @ S[p].conj().T for p in range(len(Ws))]


# Gradients and momenta


@given(
    seed=st.integers(0, 2**32 - 1),
    widths=st.sampled_from([(3, 2, 4), (4, 4, 4, 4), (2, 5, 2), (6, 3, 3, 2), (3, 5, 4, 3), (4, 2, 3, 5)]),
    field=st.sampled_from(["real", "complex"]),
)
@settings(max_examples=40)
def test_gradients_move_to_the_gradients_there(seed, widths, field):
    Ws = chain(seed, widths, field)
    after = B.act(group(seed + 1, widths, field), Ws)
    E = chain(seed, (widths[0], widths[-1]), field) if len(widths) == 2 else None
    rng = np.random.default_rng(seed)
    E = rng.normal(size=(widths[-1], widths[0])) + (
        1j * rng.normal(size=(widths[-1], widths[0])) * (field == "complex")
    )
    E = E if field == "complex" else E.real
    moved = transport_gradients(Ws, after, gradients_at(Ws, E))
    expected = gradients_at(after, E)
    scale = norm(expected) * max(np.linalg.cond(W) for W in (*Ws, *after)) ** 2
    for D, wanted in zip(moved, expected, strict=True):
        assert np.linalg.norm(D - wanted) < 1e-13 * scale


def test_a_pair_of_bad_condition_keeps_its_digits():
    """cond(A) = 1e5 and a ratio of 1e8: a Gram matrix would leave no digit."""
    rng = np.random.default_rng(0)
    q = [np.linalg.qr(rng.normal(size=shape))[0] for shape in ((60, 6), (40, 6), (6, 6))]
    values = np.geomspace(1, 1e-5, 6)
    Ws = [q[2].T @ (q[1] * values).T, 1e8 * (q[0] * values) @ q[2]]
    after = B.balanced(Ws, "nearest")
    E = rng.normal(size=(60, 40))
    for D, wanted in zip(transport_gradients(Ws, after, gradients_at(Ws, E)), gradients_at(after, E), strict=True):
        assert np.linalg.norm(D - wanted) < 1e-9 * np.linalg.norm(wanted)


def test_anything_moves_by_the_group_where_all_of_it_is_seen():
    widths = (5, 3, 3, 4)
    Ws, gs = chain(0, widths), group(1, widths)
    M = chain(2, widths)
    full = [np.eye(5), *gs, np.eye(4)]
    expected = [np.linalg.inv(full[p + 1]).T @ M[p] @ full[p].T for p in range(3)]
    for D, wanted in zip(transport_gradients(Ws, B.act(gs, Ws), M), expected, strict=True):
        np.testing.assert_allclose(D, wanted, rtol=0, atol=1e-12)
    with pytest.raises(ShapeError, match="three times"):
        transport_gradients(Ws, Ws, chain(3, (5, 3, 2, 4)))


# States


OPTIMISERS = {
    "momentum": optax.sgd(0.1, momentum=0.9),
    "nesterov": optax.sgd(optax.linear_schedule(0.1, 0.01, 9), momentum=0.9, nesterov=True),
    "adam": optax.adam(0.1),
    "amsgrad": optax.amsgrad(0.1),
    "adamw": optax.adamw(optax.linear_schedule(0.1, 0.01, 9)),
    "rmsprop": optax.rmsprop(0.1),
    "adagrad": optax.adagrad(0.1, initial_accumulator_value=0.0),
    "lion": optax.lion(0.1),
    "clipped": optax.chain(optax.clip_by_global_norm(1e6), optax.adam(0.1)),
    "accumulated": optax.MultiSteps(optax.adam(0.1), 3).gradient_transformation(),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_states_move_with_their_parameters(name):
    """Under a diagonal group the optimiser that was moved remembers what one that was there would remember."""
    widths, optimiser = (3, 3, 3), OPTIMISERS[name]
    Ws = jax_chain(0, widths)
    g = jnp.array([0.5, 2.0, 8.0])
    after = [g[:, None] * Ws[0], Ws[1] / g]
    here, there = optimiser.init(Ws), optimiser.init(after)
    for k in range(4):
        E = np.random.default_rng(k).normal(size=(3, 3))
        _, here = optimiser.update(gradients_at(Ws, E), here, Ws)
        _, there = optimiser.update(gradients_at(after, E), there, after)
    moved = transport_state(here, Ws, after)
    assert jax.tree.structure(moved) == jax.tree.structure(here)
    for found, wanted in zip(jax.tree.leaves(moved), jax.tree.leaves(there), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_second_moments_are_right_for_uncorrelated_entries():
    """A Monte Carlo check of ν' = |h|² ν |k|² with a general group element."""
    widths = (2, 2, 2)
    Ws, gs = jax_chain(1, widths), group(2, widths)
    after = [jnp.asarray(W) for W in B.act(gs, Ws)]
    rng = np.random.default_rng(3)
    nu = [jnp.asarray(rng.uniform(0.5, 2, size=(2, 2))) for _ in Ws]
    state = optax.adam(0.1).init(Ws)[0]._replace(nu=nu)
    moved = transport_state((state,), Ws, after)[0].nu
    h, k = np.linalg.inv(gs[0]).T, gs[0].T
    draws = rng.normal(size=(400_000, 2, 2))
    sampled = [
        np.mean((h @ (draws * np.sqrt(nu[0]))) ** 2, axis=0),
        np.mean(((draws * np.sqrt(nu[1])) @ k) ** 2, axis=0),
    ]
    for found, wanted in zip(moved, sampled, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0.02)
        assert (found > 0).all()


def test_masked_parameters_and_chains_inside_larger_trees():
    params = {"A": jnp.ones((2, 3)), "B": 4 * jnp.eye(4)[:, :2], "rest": jnp.ones(5)}
    params["A"] = params["A"] + jnp.arange(6.0).reshape(2, 3)
    select = lambda tree: [[tree["A"], tree["B"]]]  # noqa: E731
    new_A, new_B = (jnp.asarray(W) for W in B.balanced([params["A"], params["B"]], "nearest"))
    after = {**params, "A": new_A, "B": new_B}
    E = np.random.default_rng(0).normal(size=(4, 3))
    D = gradients_at([params["A"], params["B"]], E)
    gradients = {"A": D[0], "B": D[1], "rest": jnp.full(5, 3.0)}
    for mask in (None, {"A": True, "B": True, "rest": False}, {"A": False, "B": True, "rest": True}):
        optimiser = optax.trace(0.9) if mask is None else optax.masked(optax.trace(0.9), mask)
        _, state = optimiser.update(gradients, optimiser.init(params), params)
        trace = (state if mask is None else state.inner_state).trace
        moved = transport_state(state, params, after, chains=select)
        found = (moved if mask is None else moved.inner_state).trace
        if mask is None or mask["A"]:
            for name, wanted in zip("AB", gradients_at([new_A, new_B], E), strict=True):
                np.testing.assert_allclose(found[name], wanted, rtol=0, atol=1e-12)
        else:  # half a chain cannot be moved
            np.testing.assert_array_equal(found["B"], trace["B"])
        if mask is None or mask["rest"]:
            np.testing.assert_array_equal(found["rest"], trace["rest"])


def test_what_did_not_move_keeps_its_memory():
    Ws = [jnp.asarray(chain(0, (4, 2, 3))[0]), jnp.zeros((3, 2))]  # an adapter at its start
    M = [jnp.asarray(D) for D in chain(1, (4, 2, 3))]
    state = (optax.TraceState(trace=M),)
    for found, wanted in zip(transport_state(state, Ws, Ws)[0].trace, M, strict=True):
        np.testing.assert_array_equal(found, wanted)
    with pytest.raises(ParameterError, match="list of chains"):
        transport_state(state, Ws, Ws, chains=lambda params: params)


# The optimiser


def adapter_problem(seed=0, r=2):
    """Fit a matrix of rank 2 beside a frozen one by W + B A."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(20, 4))
    frozen = rng.normal(size=(3, 4))
    target = x @ (frozen + rng.normal(size=(3, 2)) @ rng.normal(size=(2, 4))).T
    params = {"A": jnp.asarray(rng.normal(size=(r, 4))), "B": jnp.zeros((3, r)), "bias": jnp.zeros(3)}

    def apply(p, row):
        return jnp.asarray(frozen) @ row + p["B"] @ (p["A"] @ row) + p["bias"]

    return fb.Problem(apply, x, target), params


def select(params):
    return [[params["A"], params["B"]]]


@pytest.mark.parametrize("inner", [optax.sgd(0.02), optax.sgd(0.01, momentum=0.9), optax.adam(0.02)])
def test_an_adapter_in_a_larger_tree_is_balanced_from_full_rank_on(inner):
    problem, params = adapter_problem()
    run = fb.descend(problem, rebalance(inner, 5, chains=select), params, steps=40)
    at = lambda k: {name: W[k] for name, W in run.params.items()}  # noqa: E731
    assert run.costs[-1] < 0.5 * run.costs[0]
    for k in range(1, 41):
        A, b = at(k)["A"], at(k)["B"]
        gap = np.linalg.norm(A @ A.T - b.T @ b)
        assert gap < 1e-13 if k % 5 == 0 else gap > 1e-6


def test_momentum_by_hand():
    """Compiled steps with a transported momentum, against balancing and transport on the host."""
    problem, params = adapter_problem()
    params["B"] = jnp.asarray(np.random.default_rng(1).normal(size=(3, 2)))
    optimiser = rebalance(optax.sgd(0.01, momentum=0.9), 2, chains=select)
    step = eqx.filter_jit(lambda p, s: optimiser.update(problem.gradient(p), s, p))
    state = optimiser.init(params)
    current, trace = dict(params), {name: np.zeros(W.shape) for name, W in params.items()}
    moved = {"keep": 0.0}
    for k in range(1, 7):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
        gradient = problem.gradient(current)
        trace = {name: 0.9 * trace[name] + gradient[name] for name in trace}
        current = {name: current[name] - 0.01 * trace[name] for name in trace}
        if k % 2 == 0:
            old = [current["A"], current["B"]]
            new = B.balanced(old, "nearest")
            M = transport_gradients(old, new, [trace["A"], trace["B"]])
            moved["keep"] = max(moved["keep"], float(np.linalg.norm(M[0] - trace["A"])))
            current.update(A=jnp.asarray(new[0]), B=jnp.asarray(new[1]))
            trace.update(A=jnp.asarray(M[0]), B=jnp.asarray(M[1]))
        for name in current:
            np.testing.assert_allclose(params[name], current[name], rtol=0, atol=1e-12)
            np.testing.assert_allclose(state.inner[0].trace[name], trace[name], rtol=0, atol=1e-11)
    assert moved["keep"] > 0.1


@pytest.mark.parametrize("memory", ["transport", "reset", "keep"])
def test_memory(memory):
    problem, params = adapter_problem()
    params["B"] = jnp.asarray(np.random.default_rng(1).normal(size=(3, 2)))
    inner = optax.adam(optax.linear_schedule(0.1, 0.0, 10))
    optimiser, state = rebalance(inner, 2, chains=select, memory=memory), None
    state, plain = optimiser.init(params), inner.init(params)
    for _ in range(2):
        gradient = problem.gradient(params)
        _, plain = inner.update(gradient, plain, params)
        updates, state = optimiser.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    moments, schedule = state.inner
    assert int(schedule.count) == 2 == int(state.steps)
    if memory == "reset":
        assert int(moments.count) == 0
        assert all(not np.any(leaf) for leaf in jax.tree.leaves((moments.mu, moments.nu)))
    elif memory == "keep":
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, moments, plain[0])))
    else:
        assert int(moments.count) == 2
        np.testing.assert_array_equal(moments.mu["bias"], plain[0].mu["bias"])
        assert np.linalg.norm(moments.mu["A"] - plain[0].mu["A"]) > 1e-3
        assert np.linalg.norm(moments.nu["A"] - plain[0].nu["A"]) > 1e-3
        assert all((np.asarray(leaf) >= 0).all() for leaf in jax.tree.leaves(moments.nu))


def test_rank_loss_is_waited_for_or_dropped():
    A = jnp.asarray(chain(0, (5, 3, 4))[0])
    thin = jnp.asarray(np.outer(np.ones(4), [1.0, 2.0, 3.0]))  # of rank 1
    params = [A, thin]
    zero = [jnp.zeros_like(W) for W in params]
    for how, rank in (("skip", 3), ("drop", 1)):
        optimiser = rebalance(optax.sgd(0.1), on_rank_loss=how)
        updates, _ = optimiser.update(zero, optimiser.init(params), params)
        new = optax.apply_updates(params, updates)
        np.testing.assert_allclose(new[1] @ new[0], thin @ A, rtol=0, atol=1e-13)
        assert np.linalg.matrix_rank(new[0], tol=1e-10) == rank
        assert how == "drop" or all(jnp.array_equal(W, V) for W, V in zip(new, params, strict=True))
    start = [A, jnp.zeros((4, 3))]
    for how in ("skip", "drop"):
        optimiser = rebalance(optax.sgd(0.1, momentum=0.9), on_rank_loss=how)
        state = optimiser.init(start)
        updates, state = jax.jit(optimiser.update)([jnp.ones_like(A), jnp.zeros((4, 3))], state, start)
        np.testing.assert_allclose(updates[0], -0.1 * np.ones_like(A), rtol=1e-12)
        np.testing.assert_array_equal(state.inner[0].trace[0], np.ones_like(A))


def two_layers(params, x):
    return params["second"] @ jax.nn.relu(params["first"] @ x)


@pytest.mark.parametrize("inner", [optax.sgd(0.01, momentum=0.9), optax.adam(0.01)])
def test_rescaling_moves_both_moments(inner):
    rng = np.random.default_rng(0)
    params = {"first": jnp.asarray(4 * rng.normal(size=(6, 3))), "second": jnp.asarray(0.2 * rng.normal(size=(2, 6)))}
    x = rng.normal(size=(10, 3))
    problem = fb.Problem(two_layers, x, rng.normal(size=(10, 2)))
    optimiser = rebalance(inner, rescaling=B.rescaling(two_layers, params, jnp.zeros(3)))
    updates, state = jax.jit(optimiser.update)(problem.gradient(params), optimiser.init(params), params)
    balanced = optax.apply_updates(params, updates)
    free, plain = inner.update(problem.gradient(params), inner.init(params), params)
    trained = optax.apply_updates(params, free)
    scale = jnp.sqrt(jnp.linalg.norm(trained["second"], axis=0) / jnp.linalg.norm(trained["first"], axis=1))
    c = {"first": scale[:, None], "second": 1 / scale}
    for name in params:
        np.testing.assert_allclose(balanced[name], trained[name] * c[name], rtol=1e-12)
        fields = state.inner[0]._asdict()
        for field, power in (("trace", 1), ("mu", 1), ("nu", 2)):
            if field in fields:
                wanted = getattr(plain[0], field)[name] / c[name] ** power
                np.testing.assert_allclose(fields[field][name], wanted, rtol=1e-10)
    run = fb.descend(problem, optimiser, params, steps=30)
    assert run.costs[-1] < run.costs[0]


def test_chains_and_rescaling_together():
    rng = np.random.default_rng(1)
    shapes = {"first": (6, 3), "second": (2, 6), "A": (2, 3), "B": (2, 2)}
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    optimiser = rebalance(optax.adam(0.01), chains=select, rescaling=B.rescaling(two_layers, params, jnp.zeros(3)))
    gradient = jax.tree.map(jnp.ones_like, params)
    updates, state = optimiser.update(gradient, optimiser.init(params), params)
    new = optax.apply_updates(params, updates)
    np.testing.assert_allclose(new["A"] @ new["A"].T, new["B"].T @ new["B"], atol=1e-13)
    np.testing.assert_allclose(jnp.linalg.norm(new["first"], axis=1), jnp.linalg.norm(new["second"], axis=0))
    moments = state.inner[0]
    assert np.abs(moments.mu["A"] - 0.1).max() > 1e-3
    assert np.abs(moments.nu["first"] - 0.001).max() > 1e-5


def test_a_run_that_diverges_ends():
    # the decomposition of a matrix with an infinity does not return
    Ws = [jnp.ones((4, 40)).at[0, 0].set(jnp.inf), jnp.ones((30, 4))]
    for W in jax.jit(lambda Ws: B.balanced(Ws, gauge="nearest"))(Ws):
        assert np.isnan(W).all()
    for optimiser in (rebalance(optax.adam(0.1)), rebalance(optax.sgd(0.1, momentum=0.9), every=2)):
        state = jax.vmap(optimiser.init)([W[None] for W in Ws])
        update = jax.jit(jax.vmap(optimiser.update))
        for _ in range(2):
            updates, state = update([jnp.ones((1, *W.shape)) for W in Ws], state, [W[None] for W in Ws])
        assert np.isfinite(updates[1]).all()


def test_bad_arguments():
    with pytest.raises(ParameterError, match="every"):
        rebalance(optax.sgd(0.1), 0)
    with pytest.raises(ParameterError, match="every"):
        rebalance(optax.sgd(0.1), True)
    for wrong in ({"gauge": "far"}, {"memory": "forget"}, {"on_rank_loss": "keep"}):
        with pytest.raises(UnknownNameError):
            rebalance(optax.sgd(0.1), **wrong)
    Ws = jax_chain(0, (3, 2, 3))
    for chains, error in ((lambda p: p, ParameterError), (lambda p: [p[:1]], ShapeError), (lambda p: [p[::-1]], None)):
        optimiser = rebalance(optax.sgd(0.1), chains=chains)
        if error is None:  # A B instead of B A is a chain too
            optimiser.update(Ws, optimiser.init(Ws), Ws)
        else:
            with pytest.raises(error):
                optimiser.update(Ws, optimiser.init(Ws), Ws)
