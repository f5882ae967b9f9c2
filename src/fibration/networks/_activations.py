"""Activations by name."""

import difflib
from collections.abc import Callable, Collection, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..errors import UnknownNameError

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
    check_name(name, ACTIVATIONS, "activation")
    return ACTIVATIONS[name]


def check_name(name: str, allowed: Collection[str], argument: str) -> None:
    """Check a name, or raise `UnknownNameError` with the nearest one allowed."""
    if name not in allowed:
        nearest = difflib.get_close_matches(name, allowed, n=1, cutoff=0.0)[0]
        raise UnknownNameError(
            f"{argument} is {name!r}",
            f"one of {', '.join(sorted(allowed))}",
            f"pass {argument}={nearest!r}, the nearest, or another of them",
        )
