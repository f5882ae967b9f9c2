"""The gradient flows that the benchmarks solve, in float64."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import fibration as fb


@dataclass(frozen=True)
class Flow:
    """A gradient flow from `params` until `t1`, over flat vectors: `field(y)` is −∇C."""

    title: str
    problem: fb.AbstractProblem
    params: object
    t1: float

    @property
    def flat(self):
        return ravel_pytree(self.params)[0]

    def field(self, y):
        return -ravel_pytree(self.problem.gradient(ravel_pytree(self.params)[1](y)))[0]


def digits():
    inputs, targets = fb.datasets.digits(samples=200, one_hot=True)
    return inputs - inputs.mean(axis=0), targets


def problem_a():
    inputs, targets = digits()
    apply, params = fb.networks.mlp((64, 32, 10), "tanh", key=jax.random.key(0))
    return Flow("64-32-10 tanh, squared error", fb.Problem(apply, inputs, targets), params, 1e4)


def problem_b():
    inputs, targets = digits()
    components = np.linalg.svd(np.asarray(inputs), full_matrices=False)[2][:8]
    apply, params = fb.networks.mlp((8, 16, 10), "tanh", key=jax.random.key(0))
    problem = fb.Problem(apply, inputs @ jnp.asarray(components.T), targets)
    return Flow("8-16-10 tanh on 8 principal components, squared error", problem, params, 2e3)


def problem_c():
    inputs, targets = digits()
    apply, params = fb.networks.deep_linear((64, 16, 16, 16, 10), key=jax.random.key(0), scale=0.8)
    return Flow("64-16-16-16-10 deep linear, squared error", fb.Problem(apply, inputs, targets), params, 1e3)


def problem_d():
    inputs, targets = digits()
    apply, params = fb.networks.mlp((64, 32, 10), "tanh", key=jax.random.key(0))
    problem = fb.Problem(apply, inputs, targets, loss=fb.CrossEntropy())
    return Flow("64-32-10 tanh, cross-entropy", problem, params, 2e3)


def problem_q():
    """A quadratic cost with 100 eigenvalues from 1e-6 to 1, until t = 1e6."""
    roots = jnp.sqrt(jnp.geomspace(1e-6, 1, 100))
    problem = fb.Problem(lambda w, x: x * w, 10 * jnp.diag(roots), jnp.zeros((100, 100)))
    return Flow("quadratic, 100 eigenvalues from 1e-6 to 1", problem, jax.random.normal(jax.random.key(0), (100,)), 1e6)


FLOWS = {"A": problem_a, "B": problem_b, "C": problem_c, "D": problem_d, "quadratic": problem_q}
