"""Activations by name."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._validation import check_name

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "gelu": lambda z: jax.nn.gelu(z, approximate=False),
    "sin": jnp.sin,
    "linear": lambda z: z,
}


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
    check_name("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]
