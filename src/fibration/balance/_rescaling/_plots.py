"""The picture of a balanced network: what comes into its units and what goes out, before and after."""

import numpy as np

from ...plots import Plot, Series
from ._network import NetworkReport


def network_plot(report: NetworkReport) -> Plot:
    """Draw every unit at the norms of what comes in and what goes out, before and after balancing.

    Balanced units lie on the diagonal. For weights of degree 1 a unit moves along a hyperbola |in|·|out| = constant, if
    its neighbours stay as they are. Dead units, and those without anything on one side, are left out.

    ```python
    >>> import jax
    >>> import fibration as fb
    >>> apply, params = fb.networks.mlp((4, 16, 3), "relu", key=jax.random.key(0))
    >>> _, report = fb.balance.network((apply, params))
    >>> [series.name for series in fb.balance.network_plot(report).series]
    ['balanced', 'before', 'after']

    ```
    """
    living = ~report.units["dead"].to_numpy()
    columns = [report.units[name].to_numpy()[living] for name in ("in_before", "out_before", "in_after", "out_after")]
    values = np.concatenate(columns) if living.any() else np.ones(1)
    ends = np.array([values.min() / 1.3, values.max() * 1.3])
    return Plot(
        "Units before and after balancing",
        "The norms of what comes into every unit, bias included, and of what goes out. On the line the two are equal, "
        "and the parameters are the shortest of all that compute the same function.",
        "norm of what comes in",
        "norm of what goes out",
        (
            Series("balanced", ends, ends, 0),
            Series("before", columns[0], columns[1], 4, "none", "circle"),
            Series("after", columns[2], columns[3], 1, "none", "circle"),
        ),
        x_log=True,
        y_log=True,
    )
