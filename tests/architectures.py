"""A catalogue of networks, each a problem and its parameters, for what must hold of any network."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import fibration as fb


def _draw(key, *shapes):
    keys = jax.random.split(jax.random.key(key), len(shapes))
    return [0.7 * jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)]


def _problem(apply, params, shape, samples=5, **options):
    inputs = jax.random.normal(jax.random.key(99), (samples, *shape))
    outputs = jnp.atleast_1d(apply(params, inputs[0])).shape[0]
    return fb.Problem(apply, inputs, jnp.zeros((samples, outputs)), **options), params


def mlp():
    apply, params = fb.networks.mlp((3, 6, 5, 2), "tanh", key=jax.random.key(0))
    return _problem(apply, params, (3,))


def equinox_mlp():
    model = eqx.nn.MLP(3, 2, 6, 2, activation=jax.nn.gelu, key=jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (5, 3))
    return fb.Problem.from_equinox(model, inputs, jnp.zeros((5, 2)))


class _Flax(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
        x = nn.LayerNorm()(x)
        x = nn.Conv(6, (3, 3), feature_group_count=2, padding="VALID")(x)
        return nn.Dense(2)(x.reshape(x.shape[0], -1))


def flax_convnet():
    inputs = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    module = _Flax()
    variables = jax.tree.map(lambda leaf: leaf.astype(inputs.dtype), module.init(jax.random.key(0), inputs))
    return fb.Problem.from_flax(module, variables, inputs, jnp.zeros((4, 2)))


def convnet():
    """Stride, uneven padding, both dilations and groups; a bias for each channel; pooling by sums."""

    def apply(p, x):
        dims = ("NCHW", "OIHW", "NCHW")
        conv = jax.lax.conv_general_dilated
        h = conv(x[None], p["first"], (2, 1), [(1, 2), (0, 1)], rhs_dilation=(1, 2), dimension_numbers=dims)
        h = jnp.tanh(h + p["bias"][None, :, None, None])
        h = conv(
            h, p["second"], (1, 1), [(1, 0), (1, 2)], lhs_dilation=(2, 1), feature_group_count=2, dimension_numbers=dims
        )
        return p["last"] @ jnp.sum(jnp.tanh(h), axis=(0, 2, 3))

    first, bias, second, last = _draw(2, (4, 2, 3, 2), (4,), (6, 2, 2, 3), (3, 6))
    return _problem(apply, {"first": first, "bias": bias, "second": second, "last": last}, (2, 7, 6))


def conv_1d_and_flipped():
    """Filters that are reversed before use, in one dimension, channels last."""

    def apply(p, x):
        dims = ("NWC", "WIO", "NWC")
        h = jax.lax.conv_general_dilated(x[None], p["w"][::-1], (1,), "SAME", dimension_numbers=dims)
        return jnp.tanh(h + p["b"])[0].reshape(-1) @ p["v"]

    w, b, v = _draw(3, (3, 2, 4), (4,), (24, 2))
    return _problem(apply, {"w": w, "b": b, "v": v}, (6, 2))


def shared_weights():
    """One matrix used three times: its bias added, its product taken from the bias, and without a bias."""

    def apply(p, x):
        h = jnp.tanh(p["w"] @ x + p["b"])
        return p["v"] @ jnp.tanh(p["w"] @ jnp.tanh(p["b"] - p["w"] @ h))

    w, b, v = _draw(4, (4, 4), (4,), (2, 4))
    return _problem(apply, {"w": w, "b": b, "v": v}, (4,))


def tied_transpose():
    """An autoencoder whose decoder is the encoder's transpose: the factors change sides."""

    def apply(p, x):
        return p["c"] - p["w"].T @ jnp.tanh(p["w"] @ x + p["b"])

    w, b, c = _draw(5, (6, 3), (6,), (3,))
    return _problem(apply, {"w": w, "b": b, "c": c}, (3,))


def residual_connections():
    def apply(p, x):
        h = p["in"] @ x
        for w, b in zip(p["w"], p["b"], strict=True):
            h = h + jax.nn.softplus(w @ h + b)
        return p["out"] @ h

    w, b, first, last = _draw(6, (3, 5, 5), (3, 5), (5, 2), (2, 5))
    return _problem(apply, {"w": list(w), "b": list(b), "in": first, "out": last}, (2,))


def scale_parameters():
    """Layer norm with gain and offset, RMS norm with 1 + gain, a scalar temperature, PReLU."""

    def apply(p, x):
        h = p["w"] @ x
        h = (h - jnp.mean(h)) / jnp.std(h) * p["gain"] + p["offset"]
        h = jnp.where(h > 0, h, p["slope"] * h)
        h = h * jax.lax.rsqrt(jnp.mean(h**2)) * (1 + p["shift"])
        return p["v"] @ h / 3 * p["temperature"] - p["b"]

    w, gain, offset, shift, v, b = _draw(7, (5, 3), (5,), (5,), (5,), (2, 5), (2,))
    rest = {"slope": jnp.array(0.3), "temperature": jnp.array(1.7)}
    return _problem(apply, {"w": w, "gain": gain, "offset": offset, "shift": shift, "v": v, "b": b, **rest}, (3,))


def attention():
    """A block of two heads with fused queries, keys and values, and a gated feed-forward part."""

    def apply(p, x):
        q, k, v = jnp.split(x @ p["qkv"], 3, axis=-1)
        q, k, v = (part.reshape(-1, 2, 3).transpose(1, 0, 2) for part in (q, k, v))
        mixed = jax.nn.softmax(q @ k.transpose(0, 2, 1) / np.sqrt(3)) @ v
        x = x + jnp.einsum("htd,hde->te", mixed, p["out"])
        x = x + (jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"]
        return jnp.mean(x, axis=0)[:2]

    qkv, out, gate, up, down = _draw(8, (6, 18), (2, 3, 6), (6, 7), (6, 7), (7, 6))
    return _problem(apply, {"qkv": qkv, "out": out, "gate": gate, "up": up, "down": down}, (4, 6), samples=3)


def fused_by_slices():
    """Parts of one leaf that do not overlap, as slices, by integers, and reshaped."""

    def apply(p, x):
        h = jnp.tanh(p["w"][:4] @ x + p["w"][4:] @ x**2)
        h = jnp.tanh(p["stack"][0] @ h + p["stack"][1] @ h**2)
        return p["flat"].reshape(2, 4) @ h

    w, stack, flat = _draw(9, (8, 3), (2, 4, 4), (8,))
    return _problem(apply, {"w": w, "stack": stack, "flat": flat}, (3,))


def fourier_features():
    """Frequencies that are learned, a fixed matrix, and NTK scaling."""
    fixed = jax.random.normal(jax.random.key(3), (4, 2))

    def apply(p, x):
        h = jnp.concatenate([jnp.sin(p["f"] @ x), jnp.cos(p["f"] @ x), jnp.sin(fixed @ x)])
        h = jnp.tanh((p["w"] / np.sqrt(12.0)) @ h + 0.1 * p["b"])
        return -p["v"] @ h

    f, w, b, v = _draw(10, (4, 2), (5, 12), (5,), (2, 5))
    return _problem(apply, {"f": f, "w": w, "b": b, "v": v}, (2,))


def _small(p, x):
    return (p["v"] @ jnp.tanh(p["u"] @ jnp.tanh(p["w"] @ x + p["b"]) + p["c"]))[0]


def _small_params(d=2):
    w, b, u, c, v = _draw(11, (5, d), (5,), (4, 5), (4,), (1, 4))
    return {"w": w, "b": b, "u": u, "c": c, "v": v}


def laplacian_reverse():
    """The residual of a differential equation, with second derivatives by `jax.hessian`."""
    return _problem(
        lambda p, x: jnp.trace(jax.hessian(_small, 1)(p, x))[None] + _small(p, x) ** 2, _small_params(), (2,)
    )


def laplacian_forward():
    """The same by forward differentiation along the axes, vmapped."""

    def apply(p, x):
        def along(axis):
            return jax.jvp(lambda y: jax.jvp(lambda z: _small(p, z), (y,), (axis,))[1], (x,), (axis,))[1]

        return jnp.sum(jax.vmap(along)(jnp.eye(3)))[None]

    return _problem(apply, _small_params(3), (3,))


def stacked_blocks():
    """Interior and boundary: the uses of the blocks differ."""
    interior, params = laplacian_reverse()
    boundary, _ = _problem(_small, params, (2,), samples=3, weights=[1.0, 4.0, 9.0])
    return fb.stack([interior, boundary]), params


def several_points():
    """A network evaluated at three points of each sample, by vmap, and their differences."""

    def apply(p, x):
        values = jax.vmap(lambda z: _small(p, z))(x)
        return jnp.stack([values[0] - values[1], values[1] * values[2]])

    return _problem(apply, _small_params(), (3, 2))


def recurrent():
    """A scan over time with weights that are the same at every step, and a learned beginning."""

    def apply(p, x):
        def step(h, z):
            h = jnp.tanh(p["w"] @ h + p["u"] @ z + p["b"])
            return h, p["v"] @ h

        return jax.lax.scan(step, p["start"], x)[1][-2:].reshape(-1)

    w, u, b, v, start = _draw(12, (4, 4), (4, 2), (4,), (1, 4), (4,))
    return _problem(apply, {"w": w, "u": u, "b": b, "v": v, "start": start}, (6, 2))


def scanned_layers():
    """A scan over layers that are stacked along an axis, with remat."""

    def apply(p, x):
        def layer(h, parts):
            return jax.checkpoint(lambda h, w, b: h + jnp.tanh(w @ h + b))(h, *parts), None

        return jax.lax.scan(layer, x, (p["w"], p["b"]))[0][:2]

    w, b = _draw(13, (4, 3, 3), (4, 3))
    return _problem(apply, {"w": w, "b": b}, (3,))


def long_loop():
    """More steps than are followed: a Jacobian block of its own."""

    def apply(p, x):
        return p["v"] @ jax.lax.fori_loop(0, 100, lambda _, h: jnp.tanh(p["w"] @ h + x), x)

    w, v = _draw(14, (3, 3), (2, 3))
    return _problem(apply, {"w": w, "v": v}, (3,))


def unused_and_odd():
    """A leaf that is not used, one used in other ways, integers, weight norm, low-rank updates, an embedding."""

    def apply(p, x):
        g, d = p["g"], p["d"]
        w = p["w"] * (g / jnp.linalg.norm(p["w"]))
        h = jnp.tanh((w + 0.5 * p["down"] @ p["up"]) @ x + p["embedding"][p["index"]])
        h = jnp.tanh((p["base"] + p["a"] @ p["c"]) @ h)
        return jnp.exp(-d) * h[:2] + jnp.concatenate([p["e"], p["e"]])

    w, down, up, base, a, c = _draw(15, (4, 3), (4, 1), (1, 3), (4, 4), (4, 2), (2, 4))
    embedding, e = _draw(16, (3, 4), (1,))
    rest = {"g": jnp.array(1.3), "d": jnp.array(0.2), "unused": jnp.ones((2, 2)), "index": jnp.array(1)}
    params = {"w": w, "down": down, "up": up, "base": base, "a": a, "c": c, "embedding": embedding, "e": e, **rest}
    return _problem(apply, params, (3,))


def custom_rules():
    """Functions with derivatives of their own, with and without parameters inside."""

    @jax.custom_jvp
    def crooked(w, x):
        return w @ x

    @crooked.defjvp
    def _(primals, tangents):
        (w, x), (dw, dx) = primals, tangents
        return w @ x, 2 * (dw @ x) + 3 * (w @ dx)

    @jax.custom_vjp
    def straight_through(x):
        return jnp.round(x)

    straight_through.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))

    def apply(p, x):
        return p["v"] @ straight_through(jax.nn.relu(3 * crooked(p["u"], jnp.tanh(p["w"] @ x))))

    w, u, v = _draw(17, (4, 3), (5, 4), (2, 5))
    return _problem(apply, {"w": w, "u": u, "v": v}, (3,))


def batched_weights():
    """Weights with an axis of their own for groups, as an ensemble has, and unit axes that come and go."""

    def apply(p, x):
        h = jnp.tanh(jax.vmap(lambda w, b, z: w @ z + b)(p["w"], p["b"], x.reshape(2, 3)))
        return jnp.einsum("gi,giq->q", h, p["v"][..., None, :].squeeze(-2)) + p["c"][0]

    w, b, v, c = _draw(18, (2, 4, 3), (2, 4), (2, 4, 2), (1, 2))
    return _problem(apply, {"w": w, "b": b, "v": v, "c": c}, (6,))


def narrow():
    """Axes of size one everywhere, a scalar network, and outputs without an axis."""

    def apply(p, x):
        return (p["v"] @ jnp.tanh(p["w"] @ x + p["b"]) + p["c"])[0] * p["s"]

    w, b, v, c = _draw(19, (1, 2), (1,), (1, 1), (1,))
    return _problem(apply, {"w": w, "b": b, "v": v, "c": c, "s": jnp.array(0.4)}, (2,))


ARCHITECTURES = {
    function.__name__: function
    for function in (
        mlp,
        equinox_mlp,
        flax_convnet,
        convnet,
        conv_1d_and_flipped,
        shared_weights,
        tied_transpose,
        residual_connections,
        scale_parameters,
        attention,
        fused_by_slices,
        fourier_features,
        laplacian_reverse,
        laplacian_forward,
        stacked_blocks,
        several_points,
        recurrent,
        scanned_layers,
        long_loop,
        unused_and_odd,
        custom_rules,
        batched_weights,
        narrow,
    )
}
