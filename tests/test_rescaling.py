"""Rescalings of networks found by tracing: what they keep, that none is missed, and the balanced representative."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import fibration as fb
from fibration.balance._rescaling._newton import cyclic, edges, layers, moments, newton, sweep
from homogeneous import CATALOGUE, build

B = fb.balance


def outputs(apply, params, x, count=6):
    rng = np.random.default_rng(3)
    return jnp.stack([apply(params, x), *(apply(params, jnp.asarray(rng.normal(size=x.shape))) for _ in range(count))])


def assert_same_function(apply, first, second, x, accuracy=1e-12):
    before, after = outputs(apply, first, x), outputs(apply, second, x)
    np.testing.assert_allclose(after, before, atol=accuracy * float(jnp.max(jnp.abs(before))), rtol=0)


def connections(action, params):
    return edges(action, [np.asarray(w) for w in jax.tree.leaves(params)])


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_function_is_kept_and_the_balanced_network_is_the_only_one(name):
    apply, params, x, units = build(name)
    action = B.rescaling(apply, params, x)
    assert action.n_units == units
    (_, balanced), report = B.network((apply, params), x)
    assert report.converged
    assert report.iterations <= 8
    assert report.imbalance[1] < 1e-14
    assert report.change < 1e-12
    assert_same_function(apply, params, balanced, x)
    length = sum(float(jnp.sum(w**2)) for w in jax.tree.leaves(balanced))
    assert length <= sum(float(jnp.sum(w**2)) for w in jax.tree.leaves(params))
    # from any other point of the orbit, orders of magnitude away, to the same parameters
    for seed in range(3):
        xi = jnp.asarray(np.random.default_rng(seed).normal(size=units) * 3)
        away = action.exponential(xi, params)
        assert_same_function(apply, params, away, x, 1e-9)
        (_, again), report = B.network((apply, away), x)
        assert report.converged
        for first, second in zip(jax.tree.leaves(balanced), jax.tree.leaves(again), strict=True):
            np.testing.assert_allclose(second, first, rtol=1e-9, atol=1e-12 * float(jnp.max(jnp.abs(first))))


@pytest.mark.parametrize("name", [name for name in CATALOGUE if name != "linear"])
def test_no_rescaling_is_missed(name):
    """Factors e^t of parameters, the same for all networks, that keep outputs to first order: J(W) diag(W) t = 0."""
    apply, params, x, units = build(name)
    flat, unravel = ravel_pytree(params)
    jacobian = jax.jit(jax.vmap(jax.jacobian(lambda w, x: apply(unravel(w), x)), (None, 0)))
    rng, rows = np.random.default_rng(0), []
    for _ in range(8):
        w = jnp.asarray(rng.normal(size=flat.size))
        samples = jnp.asarray(3 * rng.normal(size=(flat.size // 2, *x.shape)))
        rows.append((np.asarray(jacobian(w, samples)) * np.asarray(w)).reshape(-1, flat.size))
    gram = sum(J.T @ J / np.sum(J**2) for J in rows)
    values = np.linalg.eigvalsh(gram)
    assert int(np.sum(values < 1e-14)) == units
    assert values[units] > 1e-11


@pytest.mark.parametrize("name", ["mlp", "squared", "gated"])
def test_newton_on_the_laplacian_is_kempf_ness_and_the_minimum(name):
    apply, params, x, units = build(name)
    action = B.rescaling(apply, params, x)
    (_, balanced), report = B.network((apply, params), x)
    found = B.kempf_ness(params, action)
    assert found.converged
    for first, second in zip(jax.tree.leaves(balanced), jax.tree.leaves(found.params), strict=True):
        np.testing.assert_allclose(second, first, atol=1e-12)
    flat = jax.jit(lambda s: fb.trees.norm(action.exponential(s, params)) ** 2)
    best = scipy.optimize.minimize(flat, np.zeros(units), jac=jax.jit(jax.grad(flat)), method="BFGS", tol=1e-9)
    assert report.regularizer[1] <= best.fun / 2 * (1 + 1e-12)
    np.testing.assert_allclose(fb.trees.norm(balanced) ** 2, best.fun, rtol=1e-10)
    # within compiled code, and what is told of it
    np.testing.assert_allclose(eqx.filter_jit(action.log_scales)(params), np.log(report.units.scale), atol=1e-12)
    np.testing.assert_allclose(action.moment_map(balanced), 0, atol=1e-13 * best.fun)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 7), min_size=3, max_size=6), st.booleans())
def test_random_networks_of_random_scales(seed, widths, bias):
    apply, params = fb.networks.mlp(widths, "relu", key=jax.random.key(seed), bias=bias)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda w: jnp.asarray(rng.normal(size=w.shape) * np.exp(3 * rng.normal(size=w.shape))), params
    )
    _, report = B.network((apply, params), jnp.zeros(widths[0]))
    assert report.converged
    assert report.change < 1e-11
    assert not report.units.dead.any()
    np.testing.assert_allclose(report.units.in_after, report.units.out_after, rtol=1e-11)


def test_the_cyclic_method_converges_like_gauss_and_seidel():
    apply, params, x, _ = build("mlp")
    action = B.rescaling(apply, params, x)
    found = connections(action, params)
    exact = newton(found, action.groups, 1e-15, 50)
    swept = cyclic(found, action.groups, 1e-13, 1000)
    np.testing.assert_allclose(swept.s, exact.s, atol=1e-11)
    # the error of s shrinks by the spectral radius of the iteration with the blocks of the Laplacian
    terms, n = found.at(exact.s), action.n_units
    matrix = np.zeros((n + 1, n + 1))
    for to, start, a in zip(found.to, found.start, terms, strict=True):
        step = np.zeros(n + 1)
        step[to] += 1
        step[start] -= 1
        matrix += a * np.outer(step, step)
    matrix = matrix[1:, 1:]
    lower = np.tril(matrix)
    expected = np.max(np.abs(np.linalg.eigvals(np.eye(n) - np.linalg.solve(lower, matrix))))
    s, parts, sizes, lengths = np.zeros(n + 1), layers(found, action.groups), [], []
    for _ in range(14):
        s = sweep(parts, s)
        sizes.append(np.linalg.norm(s - exact.s))
        lengths.append(found.at(s).sum())
    np.testing.assert_allclose(sizes[-1] / sizes[-2], expected, rtol=1e-2)
    assert np.all(np.diff(lengths) <= 1e-14 * lengths[0])


def test_one_hidden_layer_is_balanced_by_one_sweep():
    apply, params = fb.networks.mlp((4, 7, 3), "relu", key=jax.random.key(0))
    _, report = B.network((apply, params), method="cyclic")
    assert report.iterations == 1
    assert report.converged
    units = report.units
    np.testing.assert_allclose(units.scale, np.sqrt(units.out_before / units.in_before), rtol=1e-13)


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("name", ["mlp", "residual", "squared"])
def test_strength_multiplies_every_imbalance_as_the_flow_does(name, strength):
    apply, params, x, units = build(name)
    action = B.rescaling(apply, params, x)
    (_, partial), report = B.network((apply, params), x, strength=strength)
    assert report.converged
    start = action.moment_map(params)
    scale = float(fb.trees.norm(params) ** 2)
    np.testing.assert_allclose(action.moment_map(partial), (1 - strength) * start, atol=1e-13 * scale)
    if strength == 0.3:
        # the induced flow s' = −Lap⁻¹ μ for t = −½ log(1 − strength), by an independent integrator

        def velocity(_, s):
            W = action.exponential(jnp.asarray(s), params)
            units_matrix = jax.vmap(lambda e: action.adjoint(W, action.infinitesimal(W, e)))(jnp.eye(units))
            return -jnp.linalg.solve(units_matrix, action.moment_map(W))

        end = scipy.integrate.solve_ivp(
            jax.jit(velocity), (0, -np.log1p(-strength) / 2), np.zeros(units), rtol=1e-10, atol=1e-12, method="DOP853"
        )
        np.testing.assert_allclose(np.log(report.units.scale), end.y[:, -1], atol=1e-9)


def test_gradients_do_not_see_units_and_weight_decay_balances_them():
    apply, params, x, _ = build("linear")  # smooth, for the flow
    action = B.rescaling(apply, params, x)
    rng = np.random.default_rng(0)
    problem = fb.Problem(apply, jnp.asarray(rng.normal(size=(5, 3))), jnp.asarray(rng.normal(size=(5, 2))))
    # ⟨in, g_in⟩ = ⟨out, g_out⟩ for every unit, biases included
    gradient = problem.gradient(params)
    size = float(fb.trees.norm(params) * fb.trees.norm(gradient))
    np.testing.assert_allclose(action.adjoint(params, gradient), 0, atol=1e-15 * size)
    start = action.moment_map(params)
    for decay in (0.0, 0.5):
        flow = fb.flows.WeightDecay(fb.GradientFlow(), decay) if decay else fb.GradientFlow()
        run = fb.integrate(problem, flow, params, t1=0.8, rtol=1e-9)
        end = action.moment_map(run.final_params)
        np.testing.assert_allclose(end, np.exp(-2 * decay * 0.8) * start, atol=1e-6 * float(jnp.max(jnp.abs(start))))
    # one step of gradient descent: μ⁺ = (1 − ηλ)² μ + η² (|g_in|² − |g_out|²)
    rate, decay = 0.05, 0.3
    after = jax.tree.map(lambda w, g: (1 - rate * decay) * w - rate * g, params, gradient)
    expected = (1 - rate * decay) ** 2 * start + rate**2 * action.moment_map(gradient)
    np.testing.assert_allclose(action.moment_map(after), expected, atol=1e-13)


# --- what is left alone -----------------------------------------------------------------------------------------------


def test_dead_units_are_reported_and_the_rest_is_unique():
    apply, params = fb.networks.mlp((3, 5, 4, 2), "relu", key=jax.random.key(0))
    params[0]["weight"] = params[0]["weight"].at[1].set(0.0)  # nothing comes in
    params[2]["weight"] = params[2]["weight"].at[:, 2].set(0.0)  # nothing goes out
    (_, balanced), report = B.network((apply, params))
    units = report.units
    assert set(zip(units.layer[units.dead], units.unit[units.dead], strict=True)) == {("0.bias", 1), ("1.bias", 2)}
    assert (units.scale[units.dead] == 1).all()
    assert report.change < 1e-14
    assert report.converged
    action = B.rescaling(apply, params, jnp.zeros(3))
    away = action.exponential(jnp.asarray(np.random.default_rng(0).normal(size=9)), params)
    (_, again), _ = B.network((apply, away))
    living = [(0, "weight", slice(2, None)), (2, "weight", slice(None))]
    for layer, name, rows in living:
        np.testing.assert_allclose(again[layer][name][rows], balanced[layer][name][rows], rtol=1e-12)
    # a bias of its own brings a unit to life
    params[0]["bias"] = params[0]["bias"].at[1].set(0.5)
    assert B.network((apply, params))[1].units.dead.sum() == 1


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (jnp.tanh, "tanh"),
        (jax.nn.gelu, "a sum of different degrees"),
        (jax.nn.silu, "logistic"),
        (jax.nn.relu6, "a minimum with a constant"),
        (jnp.round, "round"),
        (jnp.sign, "sign"),
        (lambda h: h / jnp.linalg.norm(h), "a normalisation"),
        (lambda h: (h - h.mean()) / jnp.sqrt(h.var() + 1e-5), "a sum with a constant"),
        (lambda h: h + 1.0, "a sum with a constant"),
        (lambda h: jnp.where(h > 1, h, 0.0), "a comparison with a constant"),
        (lambda h: h.astype(int).astype(float), "rounding to integers"),
        (lambda h: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, 2 * c[1]), (0, h))[1], "while"),
        (lambda h: h * h[::-1], "a product of two signals"),
    ],
)
def test_what_is_not_homogeneous_is_left_alone_with_a_reason(function, reason):
    params = [jnp.ones((4, 3)) * jnp.arange(1.0, 5)[:, None], jnp.ones((2, 4))]
    (_, new), report = B.network((lambda p, x: p[1] @ function(p[0] @ x), params), jnp.ones(3))
    assert set(report.skipped) == {"0", "1"}
    assert reason in report.skipped["0"]
    assert len(report.units) == 0
    for first, second in zip(params, new, strict=True):
        np.testing.assert_array_equal(first, second)


def test_sums_and_maxima_over_units_tie_them():
    params = [jnp.ones((4, 3)), jnp.ones((2, 1))]
    for function, units in ((jnp.max, 1), (jnp.sum, 1), (lambda h: jnp.sort(h)[1], 1), (lambda h: h[2], 1)):
        action = B.rescaling(lambda p, x, f=function: p[1] @ f(jnp.abs(p[0] @ x))[None], params, jnp.ones(3))
        assert action.n_units == units


def test_weights_that_are_used_twice_are_rescaled_once():
    square = {"u": jnp.eye(4, 3) + 0.1, "w": jnp.ones((4, 4)) + jnp.eye(4), "v": jnp.ones((2, 4))}

    def apply(p, x):
        h = jax.nn.relu(p["u"] @ x)
        for _ in range(3):
            h = jax.nn.relu(p["w"] @ h)
        return p["v"] @ h

    _, report = B.network((apply, square), jnp.ones(3))
    assert len(report.units) == 4
    assert report.change < 1e-14
    assert report.converged


def test_moments_are_what_the_action_says():
    apply, params, x, _ = build("blocks")
    action = B.rescaling(apply, params, x)
    mu, total = moments(connections(action, params), np.zeros(action.n_units + 1))
    np.testing.assert_allclose(mu, action.moment_map(params), rtol=1e-13)
    assert np.all(total > 0)
