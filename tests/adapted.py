"""Problems for the adapted flows, with what is known of them."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import fibration as fb

TANH = fb.networks.mlp((2, 16, 2), "tanh", key=jax.random.key(0))[0]


@functools.cache
def tanh_data(seed=0, samples=6):
    """Random data (N, 2) and (N, 2), and the parameters of a 2-16-2 network, K = 82."""
    keys = jax.random.split(jax.random.key(100 + seed), 3)
    with jax.enable_x64(True):
        params = fb.networks.mlp((2, 16, 2), "tanh", key=keys[2])[1]
        return jax.random.normal(keys[0], (samples, 2)), jax.random.normal(keys[1], (samples, 2)), params


def tanh_problem(seed=0, **options):
    inputs, targets, params = tanh_data(seed)
    return fb.Problem(TANH, inputs, targets, **options), params


class Scalar(eqx.Module):
    """A function of the parameters alone, with a name that compiles but once."""

    function: object = eqx.field(static=True)

    def __call__(self, params, x):
        return self.function(params)


def scalar(function, target):
    """One sample, one output."""
    return fb.Problem(Scalar(function), jnp.ones(1), jnp.array([float(target)]))


def fold(w):
    return w - 0.5 * w**2


def linear(matrix, y):
    """x = Bθ, with N = 1."""
    return fb.Problem(_times, np.asarray(matrix)[None], np.asarray(y)[None])


def _times(w, matrix):
    return matrix @ w


def circle(w, x):
    return jnp.stack([jnp.cos(w), jnp.sin(w)])


def outputs(problem, run):
    """The outputs at the saved times, (T, M)."""
    rows = [jax.tree.map(lambda leaf, i=i: leaf[i], run.params) for i in range(len(run.times))]
    return np.stack([np.asarray(problem.outputs(row)).ravel() for row in rows])


def residuals(problem, run):
    return outputs(problem, run) - np.asarray(problem.targets).ravel()


def flat(params):
    return np.asarray(ravel_pytree(params)[0])


def jacobian(problem, params):
    """D by brute force."""
    return np.asarray(_jacobian(problem, params))


@eqx.filter_jit
def _jacobian(problem, params):
    vector, unravel = ravel_pytree(params)
    return jax.jacrev(lambda v: problem.outputs(unravel(v)).ravel())(vector)
