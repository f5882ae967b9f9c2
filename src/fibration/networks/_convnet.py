"""Small convolutional networks."""

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Inexact, PRNGKeyArray

from .._validation import check_name
from ..errors import ShapeError
from ._activations import activation as look_up
from ._dense import dense_layers, init_dense, positive, variance_law

_POOLINGS = ("max", "mean", "stride", "none")
_PADDINGS = ("same", "valid")


class ConvNet(eqx.Module):
    """The function of a convolutional network and one image; made by `convnet`, hashable, equal by value."""

    input_shape: tuple[int, int, int] = eqx.field(static=True)
    activation: str = eqx.field(static=True)
    pooling: str = eqx.field(static=True)
    padding: str = eqx.field(static=True)

    def __call__(self, params: Any, x: ArrayLike) -> Inexact[Array, " q"]:
        """Compute the outputs (Q,) of one image; raise `ShapeError` for another shape than those `convnet` names."""
        phi = look_up(self.activation)
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
            if "bias" in layer:
                image = image + layer["bias"]
            image = _pool(phi(image), self.pooling)
        return dense_layers(params["dense"], jnp.ravel(image), phi)


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
    bias: bool = True,
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
    - `bias`: whether convolutions and dense layers have biases; they start at zero.
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
    shape = positive(input_shape, "input_shape")
    if len(shape) != 3:
        raise ShapeError(
            f"input_shape has {len(shape)} axes",
            "(H, W, C): height, width and channels",
            "add channels, as in (H, W, 1)",
        )
    hidden_channels = positive(channels, "channels", at_least=1)
    (side,) = positive((kernel,), "kernel")
    widths = (*positive(dense, "dense"), *positive((n_outputs,), "n_outputs"))
    check_name("pooling", pooling, _POOLINGS)
    check_name("padding", padding, _PADDINGS)
    law = variance_law(activation, init)
    height, width = shape[:2]
    for number in range(len(hidden_channels)):
        height, width = (_next_side(length, side, pooling, padding, number + 1) for length in (height, width))
    *keys, dense_key = jax.random.split(key, len(hidden_channels) + 1)
    conv: list[dict[str, Array]] = []
    for conv_key, n_in, n_out in zip(keys, (shape[2], *hidden_channels[:-1]), hidden_channels, strict=True):
        std = scale * math.sqrt(law(side**2 * n_in, side**2 * n_out))
        conv.append({"weight": std * jax.random.normal(conv_key, (side, side, n_in, n_out))})
        if bias:
            conv[-1]["bias"] = jnp.zeros((n_out,))
    dense_layers = init_dense(dense_key, (height * width * hidden_channels[-1], *widths), law, scale, bias)
    apply = ConvNet((shape[0], shape[1], shape[2]), activation, pooling, padding)
    return apply, {"conv": conv, "dense": dense_layers}


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
