"""Multilayer perceptrons."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
from jaxtyping import Array, ArrayLike, Inexact, PRNGKeyArray

from ._activations import activation as look_up
from ._dense import as_vector, dense_layers, init_dense, positive, variance_law


class MLP(eqx.Module):
    """The function of a multilayer perceptron's parameters and one sample; made by `mlp`, hashable, equal by value."""

    sizes: tuple[int, ...] = eqx.field(static=True)
    activation: str = eqx.field(static=True)

    def __call__(self, params: Any, x: ArrayLike) -> Inexact[Array, " q"]:
        """Compute the outputs (d_L,) of one sample of d_0 entries; raise `ShapeError` for another number of entries."""
        return dense_layers(params, as_vector(x, self.sizes[0]), look_up(self.activation))


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
    widths = positive(sizes, "sizes", at_least=2)
    law = variance_law(activation, init)
    return MLP(widths, activation), init_dense(key, widths, law, scale, bias)
