"""A catalogue of networks with rescalings, each with the number of its units."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import fibration as fb


def noisy(params, seed=0, scale=0.3):
    """Give biases that start at zero, and gains that start at one, values of their own."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda w: w + scale * jnp.asarray(rng.normal(size=w.shape), w.dtype), params)


class Residual(eqx.Module):
    stem: eqx.nn.Linear
    blocks: list
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 6)
        self.stem, self.head = eqx.nn.Linear(4, 5, key=keys[0]), eqx.nn.Linear(5, 3, key=keys[1])
        self.blocks = [
            (eqx.nn.Linear(5, 4, key=keys[2 + i]), eqx.nn.Linear(4, 5, use_bias=False, key=keys[4 + i]))
            for i in range(2)
        ]

    def __call__(self, x):
        x = self.stem(x)
        for up, down in self.blocks:
            x = x + down(jax.nn.relu(up(x)))
        return self.head(jax.nn.relu(x))


class Gated(eqx.Module):
    norm: eqx.nn.RMSNorm
    gate: eqx.nn.Linear
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.norm = eqx.nn.RMSNorm(4, use_bias=False)
        self.gate, self.up = (eqx.nn.Linear(4, 6, use_bias=False, key=k) for k in keys[:2])
        self.down = eqx.nn.Linear(6, 3, key=keys[2])

    def __call__(self, x):
        x = self.norm(x)
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class PReLUConv(eqx.Module):
    first: eqx.nn.Conv2d
    slope: eqx.nn.PReLU
    second: eqx.nn.Conv2d
    pool: eqx.nn.AvgPool2d
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.first, self.slope = eqx.nn.Conv2d(2, 4, 3, padding=1, key=keys[0]), eqx.nn.PReLU()
        self.second = eqx.nn.Conv2d(4, 6, 3, stride=2, groups=2, key=keys[1])
        self.pool, self.head = eqx.nn.AvgPool2d(2, 2), eqx.nn.Linear(6, 3, key=keys[2])

    def __call__(self, x):
        return self.head(jnp.mean(self.pool(jax.nn.relu(self.second(self.slope(self.first(x))))), (1, 2)))


class BatchNormed(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(3, (3, 3), param_dtype=float)(x)
        x = nn.BatchNorm(use_running_average=True, param_dtype=float)(x)
        x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(5, param_dtype=float)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3, param_dtype=float)(x)


def batch_normed(key):
    module = BatchNormed()
    variables = module.init(key, jnp.ones((1, 6, 6, 2)))
    rng = np.random.default_rng(5)
    statistics = jax.tree.map(lambda a: jnp.asarray(rng.uniform(0.5, 2, a.shape)), variables["batch_stats"])
    return fb._adapters.from_flax(module, {**variables, "batch_stats": statistics})


def sequence(params, x):
    """A network on every place of a sequence, summed: weights that are met in many places, vmapped twice."""
    hidden = jax.vmap(lambda v: jax.nn.relu(params["a"] @ v + params["b"]))(x)
    return params["d"] @ jnp.max(jax.vmap(lambda v: jnp.abs(params["c"] @ v))(hidden), axis=0)


def squared(params, x):
    return params["c"] @ (jax.nn.relu(params["a"] @ x + params["b"]) ** 2)


def dense_blocks(params, x):
    """Concatenation, slices, and a weight that is padded, transposed and scaled."""
    first = jax.nn.leaky_relu(params["a"] @ x)
    both = jnp.concatenate([first, x, jnp.ones(1)])
    second = jax.nn.relu(2.0 * both @ jnp.pad(params["b"], ((0, 0), (0, 1))).T + params["c"][None][0])
    return params["d"] @ second[1:] - params["e"] * second[0]


def scanned(params, x):
    """Layers in one stack, and a recurrent network over a sequence."""

    def layer(h, weights):
        return jax.nn.relu(weights["w"] @ h + weights["b"]), None

    def step(h, v):
        h = jax.nn.relu(params["u"] @ v + params["r"] @ h)
        return h, h[0]

    deep, _ = jax.lax.scan(layer, x[0], {"w": params["w"], "b": params["b"]})
    last, firsts = jax.lax.scan(step, jnp.zeros(3), x)
    return params["c"] @ deep + params["d"] @ last + params["e"] * firsts.sum()


def dictionary(**shapes):
    rng = np.random.default_rng(7)
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


def equinox(model):
    return fb._adapters.from_equinox(model)


def _key(seed=0):
    return jax.random.key(seed)


# name: (how to build (apply, params), the shape of a sample, the number of units)
CATALOGUE = {
    "mlp": (lambda: fb.networks.mlp((4, 6, 5, 3), "relu", key=_key()), (4,), 11),
    "leaky": (lambda: fb.networks.mlp((4, 6, 3), "leaky_relu", key=_key(), bias=False), (4,), 6),
    "linear": (lambda: fb.networks.mlp((3, 4, 4, 2), "linear", key=_key()), (3,), 8),
    "conv max": (
        lambda: fb.networks.convnet((8, 8, 2), 3, key=_key(), channels=(3, 4), kernel=3, dense=(5,)), (8, 8, 2), 12,
    ),
    "conv mean": (
        lambda: fb.networks.convnet((8, 8, 2), 3, key=_key(), channels=(3,), kernel=3, dense=(4,), pooling="mean"),
        (8, 8, 2),
        7,
    ),
    "conv stride": (
        lambda: fb.networks.convnet((6, 6, 2), 3, key=_key(), channels=(3,), kernel=3, dense=(), pooling="stride"),
        (6, 6, 2),
        3,
    ),
    "equinox mlp": (lambda: equinox(eqx.nn.MLP(4, 3, 5, 2, jax.nn.relu, key=_key())), (4,), 10),
    "residual": (lambda: equinox(Residual(_key())), (4,), 13),
    "prelu, groups": (lambda: equinox(PReLUConv(_key())), (2, 8, 8), 10),
    "gated": (lambda: equinox(Gated(_key())), (4,), 10),
    "batch norm": (lambda: batch_normed(_key()), (6, 6, 2), 8),
    "sequence": (lambda: (sequence, dictionary(a=(5, 3), b=(5,), c=(4, 5), d=(2, 4))), (6, 3), 9),
    "squared": (lambda: (squared, dictionary(a=(5, 3), b=(5,), c=(2, 5))), (3,), 5),
    "scan": (
        lambda: (scanned, dictionary(w=(3, 4, 4), b=(3, 4), u=(3, 4), r=(3, 3), c=(2, 4), d=(2, 3), e=(2,))),
        (5, 4),
        15,
    ),
    "blocks": (
        lambda: (dense_blocks, dictionary(a=(4, 3), b=(5, 7), c=(5,), d=(2, 4), e=(2,))), (3,), 9,
    ),
}  # fmt: skip


def build(name, seed=0):
    """Build a network of the catalogue: apply, params, one random sample, the number of its units."""
    make, shape, units = CATALOGUE[name]
    apply, params = make()
    rng = np.random.default_rng(seed + 1)
    return apply, noisy(params, seed), jnp.asarray(rng.normal(size=shape)), units
