"""Dense layers: how their weights are drawn, and how they act on one sample."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PRNGKeyArray

from .._validation import check_name
from ..errors import ShapeError
from ._activations import ACTIVATIONS

# The variance of a weight from the numbers of a unit's inputs and outputs.
_VARIANCES: Mapping[str, Callable[[int, int], float]] = {
    "glorot": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "he": lambda fan_in, _: 2 / fan_in,
    "lecun": lambda fan_in, _: 1 / fan_in,
}


def variance_law(activation_name: str, init: str | None) -> Callable[[int, int], float]:
    """Find a weight's variance as a function of its unit's numbers of inputs and outputs."""
    check_name("activation", activation_name, ACTIVATIONS)
    if init is None:
        # Half of a rectifier's inputs are cut off, which He's factor 2 makes up for.
        init = "he" if activation_name in ("relu", "leaky_relu") else "glorot"
    check_name("init", init, _VARIANCES)
    return _VARIANCES[init]


def positive(values: Sequence[int], name: str, *, at_least: int = 0) -> tuple[int, ...]:
    """Check a sequence of positive integers."""
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


def init_dense(
    key: PRNGKeyArray, widths: Sequence[int], law: Callable[[int, int], float], scale: float, bias: bool
) -> list[dict[str, Array]]:
    """Draw the weights of dense layers; biases are zero."""
    layers: list[dict[str, Array]] = []
    keys = jax.random.split(key, len(widths) - 1)
    for layer_key, n_in, n_out in zip(keys, widths[:-1], widths[1:], strict=True):
        std = scale * math.sqrt(law(n_in, n_out))
        layers.append({"weight": std * jax.random.normal(layer_key, (n_out, n_in))})
        if bias:
            layers[-1]["bias"] = jnp.zeros((n_out,))
    return layers


def dense_layers(layers: Any, x: Array, phi: Callable[[Array], Array]) -> Array:
    """Run dense layers with an activation between them."""
    for number, layer in enumerate(layers):
        x = layer["weight"] @ (phi(x) if number else x)
        if "bias" in layer:
            x = x + layer["bias"]
    return x


def as_vector(x: ArrayLike, size: int) -> Array:
    """Ravel one sample, and check its number of entries."""
    vector = jnp.ravel(jnp.asarray(x))
    if vector.size != size:
        raise ShapeError(
            f"one sample has shape {jnp.shape(x)}, {vector.size} entries",
            f"{size} entries, the network's first size",
            "build the network for this size, or map a batch with `jax.vmap(apply, (None, 0))`",
        )
    return vector
