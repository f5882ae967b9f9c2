"""Two small bases and small networks, for the tests of the limits of canonical coordinates."""

import jax
import jax.numpy as jnp

import fibration as fb
from fibration.canonical import Basis

LINE, PLANE = Basis([(0, 1)], 3), Basis([(0, 1)] * 2, 3)


def tanh_layer():
    return fb.networks.mlp((1, 6, 1), "tanh", key=jax.random.key(0))


def affine(w, x):
    return w * x


def small_problem():
    return fb.Problem(affine, jnp.array([[0.2], [0.7]]), jnp.array([[1.0], [0.0]]))
