"""Problems with known answers, shared by the tests."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import fibration as fb


def _inner(w, x):
    return x @ w


def quadratic(hessian):
    """A problem with cost ½ wᵀHw over vectors w, for a symmetric positive semi-definite H."""
    values, vectors = np.linalg.eigh(hessian)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    n = len(root)
    # The mean over samples divides by n; rows scaled by √n undo it.
    return fb.Problem(_inner, np.sqrt(n) * root, np.zeros((n, 1)))


def random_spd(seed, values):
    """A symmetric matrix with the given eigenvalues and random eigenvectors."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))
    return (q * np.asarray(values)) @ q.T


def digits_problem(samples=100, hidden=16, loss=None):
    """A small tanh network on digits, and its parameters."""
    inputs, targets = fb.datasets.digits(samples=samples, one_hot=loss is None)
    apply, params = fb.networks.mlp((64, hidden, 10), "tanh", key=jax.random.key(1))
    return fb.Problem(apply, jnp.asarray(inputs), jnp.asarray(targets), loss=loss), params


class Value(fb.losses.AbstractLoss):
    """The output itself as the cost, so that any function of the parameters can be one."""

    def per_sample(self, outputs, targets):
        return outputs[:, 0]

    def prepare(self, targets):
        return jnp.asarray(targets).reshape(-1, 1)

    def n_outputs(self, targets):
        return 1


class Form(eqx.Module):
    """½ wᵀHw, hashable, so that problems of one shape share what was compiled."""

    def __call__(self, w, matrix):
        return 0.5 * w @ matrix @ w


def form(hessian):
    """The cost ½ wᵀHw for a symmetric H of any signature."""
    return fb.Problem(Form(), np.asarray(hessian)[None], np.zeros((1, 1)), loss=Value())


def tanh_problem(seed=0):
    """A network of 146 parameters on a smooth task."""
    apply, params = fb.networks.mlp((6, 16, 2), "tanh", key=jax.random.key(seed))
    inputs = jax.random.normal(jax.random.key(10 + seed), (40, 6))
    targets = jnp.stack([jnp.sin(inputs @ jnp.ones(6)), inputs[:, 0] * inputs[:, 1]], axis=1)
    return fb.Problem(apply, inputs, targets), params


def deep_linear_problem(seed=1):
    apply, params = fb.networks.deep_linear((3, 3, 3, 2), key=jax.random.key(seed), scale=0.5, balanced=True)
    inputs = jax.random.normal(jax.random.key(3), (20, 3))
    return fb.Problem(apply, inputs, inputs @ jax.random.normal(jax.random.key(4), (3, 2))), params


def cost(function):
    """A problem whose cost is a function of the parameters."""
    return fb.Problem(lambda w, x: function(w), np.ones((1, 1)), np.zeros((1, 1)), loss=Value())


def symmetric(rng, values):
    """A symmetric matrix with the given eigenvalues, and its eigenvectors."""
    q, _ = np.linalg.qr(rng.normal(size=(len(values), len(values))))
    return (q * np.asarray(values)) @ q.T, q


def true_distance(problem, params, descent):
    """The distance of a descent from the flow, solved to 1e-11."""
    flow = fb.integrate(
        problem,
        fb.GradientFlow(),
        params,
        float(descent.times[-1]),
        rtol=1e-11,
        atol=1e-13,
        times=descent.times,
        method="dopri8",
    )
    return fb.fidelity.distance(descent, flow)[1]
