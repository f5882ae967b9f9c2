"""Problems with known answers, shared by the tests."""

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
