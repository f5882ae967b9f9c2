"""Networks to start from: each function returns `(apply, params)` with `apply(params, x)` for ONE sample x."""

import difflib
import itertools
import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Inexact, PRNGKeyArray

from .errors import ShapeError, UnknownNameError

__all__ = ["ACTIVATIONS", "MLP", "ConvNet", "DeepLinear", "activation", "convnet", "deep_linear", "mlp"]


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "gelu": lambda z: jax.nn.gelu(z, approximate=False),
    "sin": jnp.sin,
    "linear": lambda z: z,
}

# The variance of a weight from the numbers of a unit's inputs and outputs.
_VARIANCES: Mapping[str, Callable[[int, int], float]] = {
    "glorot": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "he": lambda fan_in, _: 2 / fan_in,
    "lecun": lambda fan_in, _: 1 / fan_in,
}

_POOLINGS = ("max", "mean", "stride", "none")
_PADDINGS = ("same", "valid")


def activation(name: str) -> Callable[[Array], Array]:
    """Look up an activation, a function of an array entry by entry, by its name.

    The names are the keys of `ACTIVATIONS`: tanh; relu, max(z, 0); leaky_relu, z for z ≥ 0 and 0.01 z below; gelu,
    z Φ(z) with the exact normal distribution function Φ; sin; linear, z. The derivative at 0 is taken as 0 for relu and
    as 1 for leaky_relu.

    **Raises:** `UnknownNameError` for another name.

    ```python
    >>> import jax.numpy as jnp
    >>> from fibration import networks
    >>> print(networks.activation("relu")(jnp.array([-2.0, 3.0])))
    [0. 3.]

    ```
    """
    _check_name(name, ACTIVATIONS, "activation")
    return ACTIVATIONS[name]


class MLP(eqx.Module):
    """The function of a multilayer perceptron's parameters and one sample; made by `mlp`, hashable, equal by value."""

    sizes: tuple[int, ...] = eqx.field(static=True)
    activation: str = eqx.field(static=True)

    def __call__(self, params: Any, x: ArrayLike) -> Inexact[Array, " q"]:
        """Compute the outputs (d_L,) of one sample of d_0 entries; raise `ShapeError` for another number of entries."""
        return _dense_layers(params, _as_vector(x, self.sizes[0]), activation(self.activation))


def mlp(
    sizes: Sequence[int],
    activation: str = "tanh",
    *,
    key: PRNGKeyArray,
    bias: bool = True,
    scale: float = 1.0,
    init: str | None = None,
) -> tuple[MLP, list[dict[str, Array]]]:
    """Build a multilayer perceptron: h_j = φ(W_j h_{j−1} + b_j), without φ after the last layer.

    **Arguments:**

    - `sizes`: the widths (d_0, …, d_L), inputs first, L ≥ 1.
    - `activation`: the name of φ, one of `ACTIVATIONS`.
    - `key`: a JAX random key.
    - `bias`: whether the layers have biases b_j; they start at zero.
    - `scale`: multiplies the initial weights.
    - `init`: the law N(0, v) of a weight of W_j: "glorot", v = 2/(d_{j−1} + d_j); "he", v = 2/d_{j−1}; "lecun",
      v = 1/d_{j−1}. By default "he" for relu and leaky_relu, "glorot" for the others.

    **Returns:** `(apply, params)`: `params` is a list of {"weight": (d_j, d_{j−1}), "bias": (d_j,)} in JAX's default
    floating-point type; `apply(params, x)` maps one sample of any shape with d_0 entries, ravelled, to (d_L,).

    **Raises:** `ShapeError` for fewer than two widths or one that is not a positive integer; `UnknownNameError`.

    **Sources:** Glorot and Bengio (AISTATS 2010), eq. 12, for "glorot", here normal instead of uniform; He et al.
    (arXiv 1502.01852), eq. 10, for "he"; LeCun et al., *Efficient BackProp* (1998), eq. 16, for "lecun".

    ```python
    >>> import jax, jax.numpy as jnp
    >>> from fibration import networks
    >>> apply, params = networks.mlp((64, 50, 10), key=jax.random.key(0))
    >>> [layer["weight"].shape for layer in params], apply(params, jnp.ones((8, 8))).shape
    ([(50, 64), (10, 50)], (10,))

    ```
    """
    widths = _positive(sizes, "sizes", at_least=2)
    law = _law(activation, init)
    return MLP(widths, activation), _init_dense(key, widths, law, scale, bias)


class ConvNet(eqx.Module):
    """The function of a convolutional network and one image; made by `convnet`, hashable, equal by value."""

    input_shape: tuple[int, int, int] = eqx.field(static=True)
    activation: str = eqx.field(static=True)
    pooling: str = eqx.field(static=True)
    padding: str = eqx.field(static=True)

    def __call__(self, params: Any, x: ArrayLike) -> Inexact[Array, " q"]:
        """Compute the outputs (Q,) of one image; raise `ShapeError` for another shape than those `convnet` names."""
        phi = activation(self.activation)
        image = _as_image(x, self.input_shape)
        strides = (2, 2) if self.pooling == "stride" else (1, 1)
        for layer in params["conv"]:
            weight = layer["weight"]
            dtype = jnp.promote_types(image.dtype, weight.dtype)  # lax's convolution does not promote by itself
            image = lax.conv_general_dilated(
                image[None].astype(dtype),
                weight.astype(dtype),
                strides,
                self.padding.upper(),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )[0]
            image = _pool(phi(image + layer["bias"]), self.pooling)
        return _dense_layers(params["dense"], jnp.ravel(image), phi)


def convnet(
    input_shape: Sequence[int],
    n_outputs: int,
    activation: str = "relu",
    *,
    key: PRNGKeyArray,
    channels: Sequence[int] = (6, 16),
    dense: Sequence[int] = (120, 84),
    kernel: int = 5,
    pooling: str = "max",
    padding: str = "same",
    scale: float = 1.0,
    init: str | None = None,
) -> tuple[ConvNet, dict[str, list[dict[str, Array]]]]:
    """Build a convolutional network like LeNet-5: convolutions, each with φ and pooling, then dense layers.

    **Arguments:**

    - `input_shape`: (H, W, C) of one image, channels last.
    - `n_outputs`: the number Q of outputs.
    - `activation`: the name of φ, applied after every layer but the last.
    - `key`: a JAX random key.
    - `channels`: the number of channels of each convolution, at least one of them.
    - `dense`: the widths of the hidden dense layers; may be empty.
    - `kernel`: the side k of the convolutions' square kernels, in pixels.
    - `pooling`: "max" or "mean" over blocks of 2×2 pixels, an odd last row or column being dropped; "stride" for
      convolutions of stride 2 instead; "none".
    - `padding`: "same" pads with zeros so that a convolution of stride 1 keeps H×W; "valid" does not pad.
    - `scale`, `init`: as for `mlp`, with k² C_in inputs and k² C_out outputs of a unit in a convolution.

    With `padding="valid"` and 32×32 images the layers have LeNet-5's sizes.

    **Returns:** `(apply, params)`: `params["conv"]` is a list of {"weight": (k, k, C_in, C_out), "bias": (C_out,)},
    `params["dense"]` a list as for `mlp`, biases zero, in JAX's default floating-point type; `apply(params, x)` maps
    one image (H, W, C), or (H·W·C,) ravelled in that order, or (H, W) if C = 1, to (Q,).

    **Raises:** `ShapeError` for sizes that are not positive integers, and for an image too small for the kernels or the
    pooling; `UnknownNameError`.

    **Source:** LeCun, Bottou, Bengio and Haffner, *Gradient-based learning applied to document recognition* (1998),
    section II.B, with standard pooling, activations and dense outputs instead of the original's.

    ```python
    >>> import jax, jax.numpy as jnp
    >>> from fibration import networks
    >>> apply, params = networks.convnet((8, 8, 1), 10, kernel=3, key=jax.random.key(0))
    >>> [layer["weight"].shape for layer in params["conv"]], params["dense"][0]["weight"].shape
    ([(3, 3, 1, 6), (3, 3, 6, 16)], (120, 64))
    >>> apply(params, jnp.ones(64)).shape
    (10,)

    ```
    """
    shape = _positive(input_shape, "input_shape")
    if len(shape) != 3:
        raise ShapeError(
            f"input_shape has {len(shape)} axes",
            "(H, W, C): height, width and channels",
            "add channels, as in (H, W, 1)",
        )
    hidden_channels = _positive(channels, "channels", at_least=1)
    (side,) = _positive((kernel,), "kernel")
    widths = (*_positive(dense, "dense"), *_positive((n_outputs,), "n_outputs"))
    _check_name(pooling, _POOLINGS, "pooling")
    _check_name(padding, _PADDINGS, "padding")
    law = _law(activation, init)
    height, width = shape[:2]
    for number in range(len(hidden_channels)):
        height, width = (_next_side(length, side, pooling, padding, number + 1) for length in (height, width))
    *keys, dense_key = jax.random.split(key, len(hidden_channels) + 1)
    conv: list[dict[str, Array]] = []
    for conv_key, n_in, n_out in zip(keys, (shape[2], *hidden_channels[:-1]), hidden_channels, strict=True):
        std = scale * math.sqrt(law(side**2 * n_in, side**2 * n_out))
        conv.append(
            {"weight": std * jax.random.normal(conv_key, (side, side, n_in, n_out)), "bias": jnp.zeros((n_out,))}
        )
    dense_layers = _init_dense(dense_key, (height * width * hidden_channels[-1], *widths), law, scale, bias=True)
    apply = ConvNet((shape[0], shape[1], shape[2]), activation, pooling, padding)
    return apply, {"conv": conv, "dense": dense_layers}


class DeepLinear(eqx.Module):
    """The function W_n … W_1 x of matrices and one sample; made by `deep_linear`, hashable, equal by value."""

    widths: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, params: Any, x: ArrayLike) -> Inexact[Array, " q"]:
        """Compute the outputs (d_n,) of one sample of d_0 entries; raise `ShapeError` for another number of entries."""
        outputs = _as_vector(x, self.widths[0])
        for matrix in params:
            outputs = matrix @ outputs
        return outputs


def deep_linear(
    widths: Sequence[int], *, key: PRNGKeyArray, scale: float = 1.0, balanced: bool = False
) -> tuple[DeepLinear, list[Array]]:
    """Build a deep linear network x ↦ W_n … W_1 x, at random or balanced parameters.

    **Arguments:**

    - `widths`: (d_0, …, d_n), inputs first, n ≥ 1.
    - `key`: a JAX random key.
    - `scale`: a factor of every matrix, so that the end-to-end matrix W = W_n … W_1 is proportional to scaleⁿ.
    - `balanced`: whether W_{j+1}ᵀ W_{j+1} = W_j W_jᵀ shall hold for every hidden layer j.

    Unbalanced, the entries of W_j are independent N(0, scale²/d_{j−1}), so that E|Wx|² = scale²ⁿ (d_n/d_0) |x|² and
    E‖W‖² = scale²ⁿ d_n (Frobenius).

    Balanced, draw A (d_n, d_0) with independent entries N(0, 1/d_0), let r be the smallest width and
    U diag(s) Vᵀ the r leading singular values and vectors of A. With Q_0 = V, Q_n = U and independent uniformly random
    frames Q_j (d_j, r) with orthonormal columns between them,

        W_j = scale · Q_j diag(s^{1/n}) Q_{j−1}ᵀ,   W = scaleⁿ U diag(s) Vᵀ,

    and both products above equal scale² Q_j diag(s^{2/n}) Q_jᵀ: the moment map μ_j = W_j W_jᵀ − W_{j+1}ᵀ W_{j+1} is
    zero up to rounding. E‖W‖² = scale²ⁿ d_n as before if no hidden layer is narrower than both ends; otherwise W is the
    best approximation of rank r of such a matrix, and smaller.

    **Returns:** `(apply, params)`: `params` is the list of the W_j (d_j, d_{j−1}), W_1 first, in JAX's default
    floating-point type; `apply(params, x)` maps one sample of any shape with d_0 entries, ravelled, to (d_n,).

    **Raises:** `ShapeError` for fewer than two widths or one that is not a positive integer.

    **Sources:** Arora, Cohen, Golowich and Hu (arXiv 1810.02281), Procedure 1, which pads with zeros where this draws
    frames and needs hidden layers at least as wide as one of the ends; the moment map of Lindsey and Menon
    (arXiv 2511.01137).

    ```python
    >>> import jax, jax.numpy as jnp
    >>> from fibration import networks
    >>> apply, (first, second) = networks.deep_linear((4, 3, 5), key=jax.random.key(0), balanced=True)
    >>> bool(jnp.allclose(second.T @ second, first @ first.T, atol=1e-5))
    True
    >>> apply([first, second], jnp.ones(4)).shape
    (5,)

    ```
    """
    sizes = _positive(widths, "widths", at_least=2)
    depth = len(sizes) - 1
    keys = jax.random.split(key, depth)
    if not balanced:
        shapes = zip(keys, sizes[1:], sizes[:-1], strict=True)
        matrices = [scale / math.sqrt(n_in) * jax.random.normal(k, (n_out, n_in)) for k, n_out, n_in in shapes]
        return DeepLinear(sizes), matrices
    rank = min(sizes)
    end_to_end = jax.random.normal(keys[0], (sizes[-1], sizes[0])) / math.sqrt(sizes[0])
    left, singular_values, right = jnp.linalg.svd(end_to_end, full_matrices=False)
    hidden = [_random_frame(k, width, rank) for k, width in zip(keys[1:], sizes[1:-1], strict=True)]
    frames = [right[:rank].T, *hidden, left[:, :rank]]
    shared = scale * singular_values[:rank] ** (1 / depth)
    matrices = [(after * shared) @ before.T for before, after in itertools.pairwise(frames)]
    return DeepLinear(sizes), matrices


def _check_name(name: str, allowed: Collection[str], argument: str) -> None:
    if name not in allowed:
        nearest = difflib.get_close_matches(name, allowed, n=1, cutoff=0.0)[0]
        raise UnknownNameError(
            f"{argument} is {name!r}",
            f"one of {', '.join(sorted(allowed))}",
            f"pass {argument}={nearest!r}, the nearest, or another of them",
        )


def _law(activation_name: str, init: str | None) -> Callable[[int, int], float]:
    _check_name(activation_name, ACTIVATIONS, "activation")
    if init is None:
        # Half of a rectifier's inputs are cut off, which He's factor 2 makes up for.
        init = "he" if activation_name in ("relu", "leaky_relu") else "glorot"
    _check_name(init, _VARIANCES, "init")
    return _VARIANCES[init]


def _positive(values: Sequence[int], name: str, *, at_least: int = 0) -> tuple[int, ...]:
    try:
        numbers = tuple(operator.index(value) for value in values)
    except TypeError:
        numbers = (0,)
    if len(numbers) < at_least or any(number < 1 for number in numbers):
        count = f"at least {at_least} " if at_least > 1 else ""
        raise ShapeError(
            f"{name} is {values!r}", f"{count}positive integers", f"give every size in {name} as 1 or more"
        )
    return numbers


def _random_frame(key: PRNGKeyArray, width: int, rank: int) -> Array:
    columns, triangle = jnp.linalg.qr(jax.random.normal(key, (width, rank)))
    # QR fixes the columns' signs by convention; undoing that makes the frame uniformly distributed (Mezzadri 2007).
    return columns * jnp.where(jnp.diagonal(triangle) < 0, -1.0, 1.0)


def _init_dense(
    key: PRNGKeyArray, widths: Sequence[int], law: Callable[[int, int], float], scale: float, bias: bool
) -> list[dict[str, Array]]:
    layers: list[dict[str, Array]] = []
    keys = jax.random.split(key, len(widths) - 1)
    for layer_key, n_in, n_out in zip(keys, widths[:-1], widths[1:], strict=True):
        std = scale * math.sqrt(law(n_in, n_out))
        layers.append({"weight": std * jax.random.normal(layer_key, (n_out, n_in))})
        if bias:
            layers[-1]["bias"] = jnp.zeros((n_out,))
    return layers


def _dense_layers(layers: Any, x: Array, phi: Callable[[Array], Array]) -> Array:
    for number, layer in enumerate(layers):
        x = layer["weight"] @ (phi(x) if number else x)
        if "bias" in layer:
            x = x + layer["bias"]
    return x


def _as_vector(x: ArrayLike, size: int) -> Array:
    vector = jnp.ravel(jnp.asarray(x))
    if vector.size != size:
        raise ShapeError(
            f"one sample has shape {jnp.shape(x)}, {vector.size} entries",
            f"{size} entries, the network's first size",
            "build the network for this size, or map a batch with `jax.vmap(apply, (None, 0))`",
        )
    return vector


def _as_image(x: ArrayLike, shape: tuple[int, int, int]) -> Array:
    image = jnp.asarray(x)
    # Other shapes of as many entries, such as channels first, would silently be read in the wrong order.
    if image.shape not in (shape, (math.prod(shape),), *((shape[:2],) if shape[2] == 1 else ())):
        raise ShapeError(
            f"one sample has shape {image.shape}",
            f"an image of shape {shape}, channels last, or ravelled",
            "move the channels with `jnp.moveaxis(x, 0, -1)`, or map a batch with `jax.vmap(apply, (None, 0))`",
        )
    return image.reshape(shape)


def _pool(image: Array, pooling: str) -> Array:
    if pooling not in ("max", "mean"):
        return image
    height, width, n_channels = image.shape
    blocks = image[: height // 2 * 2, : width // 2 * 2].reshape(height // 2, 2, width // 2, 2, n_channels)
    return jnp.max(blocks, axis=(1, 3)) if pooling == "max" else jnp.mean(blocks, axis=(1, 3))


def _next_side(side: int, kernel: int, pooling: str, padding: str, number: int) -> int:
    """Find an image's side after a convolution and its pooling."""
    after = side if padding == "same" else side - kernel + 1
    pooled = {"max": after // 2, "mean": after // 2, "stride": (after + 1) // 2, "none": after}[pooling]
    if kernel > side or pooled < 1:
        raise ShapeError(
            f"convolution {number} and its pooling meet a side of {side} pixels with kernel={kernel}",
            "a side no smaller than the kernel, and 2 pixels left for pooling",
            "pass a smaller kernel (3 for 8×8 images), fewer channels, padding='same' or pooling='none'",
        )
    return pooled
