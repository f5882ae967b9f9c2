"""From a list of truncations to the weights of a ReLU network, and what the network does to the samples."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ._cone import Cone
from ._types import Clouds, Collapse, Coordinates, blocks

Weights = list[tuple[Float[np.ndarray, "_ _"], Float[np.ndarray, " _"]]]


def identity_step(clouds: Clouds, axis: Float[np.ndarray, " n"] | None = None, room: float = 10.0) -> Collapse:
    """Make a layer whose pre-activations are positive on all samples, so that it leaves them as they are.

    Its cone opens along `axis`, by default the diagonal, from so far back that inputs stay, too, that lie beyond the
    samples by up to `room` times their spread.
    """
    n = clouds[0].shape[1]
    axis = np.full(n, 1 / np.sqrt(n)) if axis is None else axis
    probe = Cone(np.zeros(n), axis, 1.0)
    pre = [probe.preactivations(cloud) for cloud in clouds]
    least = min(float(p.min()) for p in pre)
    spread = max(float(p.max()) for p in pre) - least or 1.0
    # Along the axis all pre-activations grow alike, by 1/√n.
    return Collapse(Cone((least - room * spread) * np.sqrt(n) * axis, axis, 1.0), None)


def weights_of(
    coordinates: Coordinates,
    steps: list[Collapse],
    matrix: Float[np.ndarray, "P n"],
    offset: Float[np.ndarray, " P"],
) -> Weights:
    """Turn truncations τ_1, …, τ_L of z = Tx + t and the output map z → Az + c into weights and biases.

    With cumulative W^(ℓ), b^(ℓ): W_ℓ = W^(ℓ)(W^(ℓ−1))⁻¹ and b_ℓ = b^(ℓ) − W_ℓ b^(ℓ−1); W^(0)z + b^(0) = Tx + t; the
    output layer is A(W^(L))⁻¹. Chen and Muñoz Ewald, arXiv 2309.10639, section 2.
    """
    weights: Weights = []
    cumulative, back = np.zeros(len(coordinates.offset)), np.eye(len(coordinates.offset))
    for step in steps:
        weight = step.cone.weight @ back
        weights.append((weight, step.cone.bias - weight @ cumulative))
        cumulative, back = step.cone.bias, step.cone.inverse
    last = matrix @ back
    weights.append((last, offset - last @ cumulative))
    # The coordinates go into whatever comes first.
    first, bias = weights[0]
    weights[0] = (first @ coordinates.matrix, bias + first @ coordinates.offset)
    return weights


def forward(weights: Weights, inputs: Float[np.ndarray, "N M"]) -> Float[np.ndarray, "N P"]:
    """Compute the network's outputs in double precision."""
    for weight, bias in weights[:-1]:
        inputs = np.maximum(inputs @ weight.T + bias, 0)
    weight, bias = weights[-1]
    return inputs @ weight.T + bias


@dataclass(frozen=True, eq=False)
class Signs:
    """The smallest distance of a pre-activation from the sign that a certificate asks for, layer by layer.

    `margins` (L,): positive where every pre-activation is negative on the layer's own class and positive on all others.
    """

    margins: Float[np.ndarray, " L"]

    @property
    def certified(self) -> bool:
        """Whether all signs are as asked."""
        return bool(np.all(self.margins > 0))


def signs(clouds: Clouds, steps: list[Collapse]) -> tuple[Signs, Clouds]:
    """Check the signs of all pre-activations and return the samples as the layers leave them.

    The certificate: layer ℓ is negative on the class that it collapses, which then is one point, and positive on
    everything else, which it leaves alone.
    """
    clouds = list(clouds)
    margins = np.empty(len(steps))
    for index, step in enumerate(steps):
        weight, bias, least = step.cone.weight, step.cone.bias, np.inf
        for label, cloud in enumerate(clouds):
            sign = -1.0 if label == step.label else 1.0
            margin = min(float((sign * (rows @ weight.T + bias)).min()) for rows in blocks(cloud))
            if label == step.label and margin > 0:
                clouds[label] = step.cone.base_point[None]
            elif label == step.label or margin < 0:
                clouds[label] = step.cone.truncate(cloud)
            least = min(least, margin)
        margins[index] = least
    return Signs(margins), clouds
