"""Cross-entropy: what the Euclidean metric of outputs does, and what the Fisher metric does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fibration as fb
from adapted import TANH, outputs, tanh_data
from fibration.flows import Euclidean, SoftmaxFisher, Whitened

EXACT = {"rtol": 1e-11, "atol": 1e-13, "method": "dopri8"}
N, Q = 4, 3


def logits(w, i):
    """The outputs of sample i are parameters themselves: D = I, and the flow is that of the outputs alone."""
    return w[i.astype(int)]


def problem_of(targets, weights=None):
    return fb.Problem(logits, jnp.arange(4.0), targets, loss=fb.CrossEntropy(3), weights=weights)


def start():
    return jax.random.normal(jax.random.key(1), (N, Q))


def probabilities(problem, run):
    return np.asarray(jax.nn.softmax(outputs(problem, run).reshape(-1, N, Q), axis=-1))


def flow(metric):
    return fb.AdaptedFlow(damping=0.0, method="svd", metric=metric)


def test_smoothed_labels_have_the_limit_that_the_conserved_mean_selects():
    y = jax.nn.softmax(jax.random.normal(jax.random.key(2), (N, Q)))
    problem, first = problem_of(y), start()
    run = fb.integrate(problem, flow(Euclidean()), first, t1=800.0, times=[0.0, 1.0, 800.0], **EXACT)
    x = outputs(problem, run).reshape(-1, N, Q)
    np.testing.assert_allclose(x.sum(axis=2), np.broadcast_to(x[0].sum(axis=1), (3, N)), atol=1e-11)
    log = np.log(np.asarray(y))
    limit = log - log.mean(axis=1, keepdims=True) + np.asarray(first).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(x[-1], limit, atol=1e-9)


def test_one_hot_labels_decay_algebraically():
    """From equal logits C ~ (Q − 1)N/(Qt), and a warning says so."""
    problem = problem_of(jnp.array([0, 1, 2, 0]))
    with pytest.warns(fb.errors.NoMinimizerWarning, match=r"2\.67/t"):
        run = fb.integrate(
            problem, flow(Euclidean()), jnp.zeros((N, Q)), t1=1e6, times=[0.0, 1e4, 1e6], rtol=1e-8, method="auto"
        )
    assert run.costs[-1] * 1e6 / ((Q - 1) * N / Q) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("kind", ["classes", "one-hot", "smoothed", "mass"])
def test_probabilities_move_on_straight_lines_in_the_fisher_metric(kind):
    classes = jnp.array([0, 1, 2, 0])
    y = jax.nn.one_hot(classes, Q)
    if kind == "smoothed":
        y = 0.7 * y + 0.1
    mass = jnp.array([1.0, 2.0, 0.5, 1.0]) if kind == "mass" else jnp.ones(N)
    problem = problem_of(classes if kind == "classes" else mass[:, None] * y)
    times = np.linspace(0, 20, 6)
    run = fb.integrate(problem, flow(SoftmaxFisher()), start(), t1=20.0, times=times, **EXACT)
    p = probabilities(problem, run)
    passed = np.exp(-np.outer(times / N, mass))[:, :, None]
    np.testing.assert_allclose(p, np.asarray(y) + passed * (p[0] - np.asarray(y)), atol=1e-11)
    if kind == "classes":
        first = p[0, np.arange(N), np.asarray(classes)]
        law = -np.log(1 - np.exp(-times / N)[:, None] * (1 - first)).mean(axis=1)
        np.testing.assert_allclose(run.costs, law, rtol=1e-9)
        x = outputs(problem, run).reshape(-1, N, Q)
        np.testing.assert_allclose(x.sum(axis=2), np.broadcast_to(x[0].sum(axis=1), (6, N)), atol=1e-9)


def test_a_network_classifies_along_straight_lines():
    inputs, _, params = tanh_data()
    problem = fb.Problem(TANH, inputs, jnp.array([0, 1, 1, 0, 1, 0]), loss=fb.CrossEntropy())
    run = fb.integrate(problem, flow(SoftmaxFisher()), params, t1=24.0, times=[0.0, 24.0], **EXACT)
    p = np.asarray(jax.nn.softmax(outputs(problem, run).reshape(-1, 6, 2), axis=-1))
    y = np.eye(2)[[0, 1, 1, 0, 1, 0]]
    np.testing.assert_allclose(p[1], y + np.exp(-4) * (p[0] - y), atol=1e-9)


def test_weights_scale_the_rates():
    weights = jnp.array([1.0, 3.0, 0.5, 2.0])
    problem = problem_of(jnp.array([0, 1, 2, 0]), weights)
    run = fb.integrate(problem, flow(SoftmaxFisher()), start(), t1=4.0, times=[0.0, 4.0], **EXACT)
    p, y = probabilities(problem, run), np.eye(3)[[0, 1, 2, 0]]
    np.testing.assert_allclose(p[1], y + np.exp(-np.asarray(weights))[:, None] * (p[0] - y), atol=1e-11)


def test_velocities_are_gradients_in_their_metrics():
    """F·v = −∇ₓC for the Fisher matrices F/1 of the samples, and v has no part along constants."""
    y = jax.nn.softmax(jax.random.normal(jax.random.key(2), (N, Q)))
    problem, x = problem_of(y), start()
    v = SoftmaxFisher().velocity(problem, x.ravel()).reshape(N, Q)
    p = jax.nn.softmax(x)
    fisher = jax.vmap(jnp.diag)(p) - p[:, :, None] * p[:, None, :]
    np.testing.assert_allclose(jnp.einsum("nij,nj->ni", fisher, v), (y - p) / N, atol=1e-14)
    np.testing.assert_allclose(v.sum(axis=1), 0, atol=1e-14)
    np.testing.assert_allclose(Euclidean().velocity(problem, x.ravel()), ((y - p) / N).ravel(), atol=1e-15)


def test_metrics_refuse_other_losses():
    inputs, targets, params = tanh_data()
    squares = fb.Problem(TANH, inputs, targets)
    with pytest.raises(fb.errors.ParameterError, match="CrossEntropy"):
        flow(SoftmaxFisher())(squares, params)
    classes = fb.Problem(TANH, inputs, np.zeros(6, int), loss=fb.CrossEntropy(2))
    for wrong in (flow(Whitened()), fb.PathFlow()):
        with pytest.raises(fb.errors.ParameterError, match="SquaredError"):
            wrong(classes, params)
