"""How long the adapted flow takes."""

from typing import Any

import numpy as np
from jaxtyping import Float

from ..errors import ParameterError


def stopping_time(cost: Any, tolerance: Any, n_samples: Any) -> Float[np.ndarray, "..."] | float:
    """Compute beforehand when the adapted flow's cost C₀e^{−2t/N} falls to a tolerance: t = (N/2) ln(C₀/ε).

    **Arguments:** `cost`: C₀ at the start; `tolerance`: ε > 0; `n_samples`: N. Arrays of them are broadcast.

    **Returns:** the time, a float or an array; 0 where the cost is below the tolerance already. It holds for
    `SquaredError`, unit weights and no damping, for as long as the differential keeps its full rank.

    **Raises:** `ParameterError` for numbers that are not positive and finite; a cost of 0 is allowed.

    **Source:** derived from Chen and Muñoz Ewald, arXiv 2408.01517, whose cost decays as e^{−2t/N}.

    ```python
    >>> import fibration as fb
    >>> round(fb.flows.stopping_time(cost=1.0, tolerance=1e-12, n_samples=6), 3)
    82.893

    ```
    """
    values = [np.asarray(value, float) for value in (cost, tolerance, n_samples)]
    for name, value in zip(("cost", "tolerance", "n_samples"), values, strict=True):
        low = value >= 0 if name == "cost" else value > 0
        if not np.all(low & np.isfinite(value)):
            raise ParameterError(f"{name} = {value}", "positive, finite numbers", "pass the cost at the start")
    first, last, n = values
    time = 0.5 * n * np.log(np.maximum(first, last) / last)
    return float(time) if time.ndim == 0 else time
