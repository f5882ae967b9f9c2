"""Networks for the tests of canonical coordinates."""

import jax
import jax.numpy as jnp
import numpy as np

import fibration as fb


def spread(width, d=1, q=1, *, activation="tanh", scale=8.0, seed=0):
    """One hidden layer whose units bend all over the unit box: weights of size `scale`, centres uniform."""
    rng = np.random.default_rng(seed)
    weights = scale * rng.normal(size=(width, d))
    centres = rng.uniform(size=(width, d))
    params = {
        "weight": jnp.asarray(weights),
        "bias": jnp.asarray(-np.sum(weights * centres, axis=1)),
        "out": jnp.asarray(rng.normal(size=(q, width)) / np.sqrt(width)),
        "offset": jnp.zeros(q),
    }
    sigma = {"tanh": jnp.tanh, "relu": jax.nn.relu, "sin": jnp.sin, "cos": jnp.cos}[activation]

    def apply(p, x):
        return p["out"] @ sigma(p["weight"] @ x + p["bias"]) + p["offset"]

    return apply, params


def shallow_relu(params, indices):
    """Coordinates and disparity of one hidden ReLU layer on [0, 1], in closed form (spec 001, 3.1)."""
    u, c, a = (np.asarray(params[name]).reshape(-1) for name in ("weight", "bias", "out"))
    k = indices.reshape(-1)
    theta = np.zeros(len(k))
    rows = []
    for ui, ci, ai in zip(u, c, a, strict=True):
        low, high = (max(0.0, -ci / ui), 1.0) if ui > 0 else (0.0, min(1.0, -ci / ui))
        if not low < high:
            low = high = 0.0
        w = np.pi * np.where(k == 0, 1, k)
        m0 = np.where(k == 0, high - low, (np.sin(w * high) - np.sin(w * low)) / w)
        m1 = np.where(
            k == 0,
            (high**2 - low**2) / 2,
            (high * np.sin(w * high) - low * np.sin(w * low)) / w + (np.cos(w * high) - np.cos(w * low)) / w**2,
        )
        m0, m1 = (m * np.where(k == 0, 1, np.sqrt(2)) for m in (m0, m1))
        theta += ai * (ui * m1 + ci * m0)
        rows.append((ai * m1, ai * m0, ui * m1 + ci * m0))
    theta += float(params["offset"][0]) * (k == 0)
    by_leaf = {"weight": 0, "bias": 1, "out": 2}
    # ravel_pytree sorts a dictionary's keys.
    blocks = [
        np.array([(k == 0).astype(float)]) if name == "offset" else np.array([row[by_leaf[name]] for row in rows])
        for name in sorted(params)
    ]
    return theta, np.concatenate(blocks)


def random_problem(apply, params, d, n, q, *, loss=None, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.uniform(size=(n, d))
    targets = rng.integers(q, size=n) if isinstance(loss, fb.CrossEntropy) else rng.normal(size=(n, q))
    return fb.Problem(apply, inputs, targets, loss=loss)
