"""Balance a positively homogeneous network: the shortest parameters among all rescalings of its units."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ... import _validation, trees
from ..._validation import check_name, check_strength
from ...errors import ParameterError, PrecisionError, StepSizeError
from ...trees import PyTree
from ._models import Model, read_model
from ._newton import Edges, alive, cyclic, edges, newton

_LIMITS = {"newton": 100, "cyclic": 10_000}
_PROBES = 4
_RANGE = 1e150  # within which squares neither overflow nor vanish


@dataclass(frozen=True, eq=False)
class NetworkReport:
    """What `network` did.

    - `units`: a `pandas.DataFrame` with a row per unit that can be rescaled: the array of parameters that makes it
      (`layer`), its number there (`unit`), the norms of what comes into it (with its bias) and of what goes out, before
      (`in_before`, `out_before`) and after (`in_after`, `out_after`), its `scale` c, and whether it is `dead`: not on
      any path of nonzero weights from inputs or biases to outputs, so that no scale is best, and it is left alone.
    - `regularizer`: ½|W|² of what is rescaled, before and after; `imbalance`: √Σμ²/|W|² of living units, likewise. All
      that is said of what comes after is measured on the numbers as they were rounded.
    - `skipped`: for every array of parameters that is left alone, why.
    - `iterations`, `converged`: of Newton's method, or sweeps.
    - `change`: how far outputs moved, relative to the largest, on the sample and on random inputs like it, in the
      network's own precision; NaN where the function is not known.
    """

    units: Any = field(repr=False)  # imported with pandas, when it is made
    regularizer: tuple[float, float]
    imbalance: tuple[float, float]
    skipped: dict[str, str]
    iterations: int
    converged: bool
    change: float


def network(
    model: Any,
    structure: Any = None,
    *,
    strength: float = 1.0,
    method: str = "newton",
    tolerance: float = 1e-14,
    max_iterations: int | None = None,
) -> tuple[Any, NetworkReport]:
    """Rescale a network's units so that its parameters are shortest, without changing its function.

    At the minimum every unit is balanced, |in|² = |out|²: what comes in, bias included, is as long as what goes out.
    ½|W|² is a convex function of the logarithms of the scales, strictly so for living units, so that the balanced
    network is the only one among all rescalings of a network (signs are kept): a canonical representative. What may be
    rescaled is found by following the network's operations, see `rescaling`.

    **Arguments:**

    - `model`: a pair (apply, params) as from `fibration.networks`; an Equinox module of one sample; a pair (linen
      module, variables) of Flax; a torch module; or a state_dict, of torch tensors or arrays, with the layer order.
    - `structure`: one sample x, to follow the network with; a list of the names of a state_dict's layers, inputs
      first, between which there are only homogeneous operations, as in `nn.Sequential`: "0" for "0.weight" and
      "0.bias"; or a `Rescaling`, for bare parameters. May be left out for `fibration.networks`.
    - `strength`: the imbalance |in|² − |out|² of every unit is multiplied by 1 − strength: 1 balances, 0 does nothing.
    - `method`: "newton", with the weighted graph Laplacian of the network for a Hessian, or "cyclic", closed forms for
      one layer after the other: many more iterations, no system of equations.
    - `tolerance`: of the largest |μ_k|/(|in_k|² + |out_k|²); `max_iterations`: 100, or 10,000 sweeps, by default.

    **Returns:** the balanced network, of the kind of `model` (a torch module is copied), and a `NetworkReport`.
    Computed in float64, rounded to the type of the parameters. Normalisation layers, tanh, GELU and their like keep
    what comes before them as it is; the report says so.

    **Raises:** `ParameterError` for other models, without a sample where one is needed, or for a strength outside
    [0, 1]; `ApplyError` if the network fails on the sample; `ShapeError` for layers that do not follow one another;
    `NonFiniteDataError` for parameters that are not finite; `PrecisionError` if they are 1e150 apart, or balanced
    beyond the range of their type; `UnknownNameError`; `StepSizeError` for a tolerance or a limit that is none.

    Allocates some 80 bytes per parameter, and at most 500 MB for equations.

    **Source:** Stock et al. (arXiv 1902.10416) for the cyclic method; the moment map and Newton's method: derived.

    ```python
    >>> import jax, jax.numpy as jnp
    >>> import fibration as fb
    >>> apply, params = fb.networks.mlp((4, 16, 16, 3), "relu", key=jax.random.key(0))
    >>> params[0]["weight"] = 1000 * params[0]["weight"]
    >>> (_, balanced), report = fb.balance.network((apply, params))
    >>> bool(report.regularizer[1] < 0.1 * report.regularizer[0]), report.converged, bool(report.change < 1e-5)
    (True, True, True)
    >>> print(report.skipped)
    {'2.bias': 'inputs and outputs at its ends'}

    ```
    """
    check_name("method", method, _LIMITS)
    check_strength(strength)
    if method == "cyclic" and strength != 1:
        raise ParameterError(f"strength = {strength} by sweeps", "strength 1", 'take method="newton"')
    limit = _LIMITS[method] if max_iterations is None else max_iterations
    if not (tolerance > 0 and limit >= 0):
        raise StepSizeError(
            f"tolerance = {tolerance}, max_iterations = {max_iterations}",
            "a positive and a natural number",
            "leave them out",
        )
    read = read_model(model, structure)
    _validation.check_parameters(trees.as_coordinates(read.params))
    leaves = [leaf for leaf in jax.tree.leaves(read.params) if trees.is_coordinate(leaf)]
    wide = [_widened(leaf) for leaf in leaves]
    unit = _unit(wide)
    found = edges(read.action, [w / unit for w in wide])
    living = alive(found)
    node_alive = np.concatenate([[True], living])
    kept = node_alive[found.to] & node_alive[found.start] & (found.squares > 0)
    live = found.taken(kept)
    if method == "cyclic":
        shortest = cyclic(live, read.action.groups, tolerance, limit)
    else:
        shortest = newton(live, read.action.groups, tolerance, limit, strength)
    new = _rescaled(read, wide, leaves, shortest.s)
    arrays = iter(new)
    params = jax.tree.map(lambda leaf: next(arrays) if trees.is_coordinate(leaf) else leaf, read.params)
    after = edges(read.action, [_widened(w) / unit for w in new])
    alive_after = dataclasses.replace(live, squares=after.squares[kept])
    report = NetworkReport(
        _units(read, found, after, shortest.s, living, unit),
        (found.squares.sum() * unit**2 / 2, after.squares.sum() * unit**2 / 2),
        (_imbalance(live), _imbalance(alive_after)),
        {name: why for name, why in zip(read.action.names, read.action.reasons, strict=True) if why},
        shortest.iterations,
        shortest.converged,
        _change(read, params),
    )
    return read.write(params), report


def _widened(leaf: Any) -> np.ndarray:
    return np.asarray(leaf).astype(np.complex128 if jnp.iscomplexobj(leaf) else np.float64)


def _unit(wide: list[np.ndarray]) -> float:
    """Find the largest entry, and make sure that the squares of the others do not vanish beside it."""
    sizes = [np.abs(w[w != 0]) for w in wide]
    largest = max((float(size.max(initial=0.0)) for size in sizes), default=0.0) or 1.0
    smallest = min((float(size.min(initial=largest)) for size in sizes), default=largest)
    if smallest < largest / _RANGE or not 1 / _RANGE < largest < _RANGE:
        raise PrecisionError(
            f"parameters from {smallest:.0e} to {largest:.0e}, whose squares do not fit into float64",
            f"nonzero parameters within a factor of {_RANGE:.0e}",
            "bring the layers to similar sizes first, or set what is as good as zero to zero",
        )
    return largest


def _rescaled(read: Model, wide: list[np.ndarray], leaves: list[Any], s: np.ndarray) -> list[Any]:
    """Multiply, and round to the given types."""
    new, names = [], read.action.names
    for leaf, w, old, name in zip(read.action.leaves, wide, leaves, names, strict=True):
        if leaf is None:
            new.append(old)
            continue
        product = w * np.exp(leaf.gain_degree * s[leaf.gain] - leaf.loss_degree * s[leaf.loss])
        dtype = np.asarray(old).dtype
        with np.errstate(over="ignore"):
            rounded = product.astype(dtype)
        if not np.isfinite(_widened(rounded)).all():
            raise PrecisionError(
                f"{name} balanced is beyond the range of {dtype}", "a wider type", "convert the parameters to float32"
            )
        new.append(jnp.asarray(rounded) if isinstance(old, jax.Array) else rounded)
    return new


def _imbalance(found: Edges) -> float:
    into, out = found.sums(found.squares)
    return float(np.linalg.norm((into - out)[1:]) / (found.squares.sum() or 1.0))


def _units(read: Model, found: Edges, after: Edges, s: np.ndarray, living: np.ndarray, unit: float) -> Any:
    import pandas as pd

    n = read.action.n_units
    layer, number = np.full(n + 1, -1), np.zeros(n + 1, int)
    for place, leaf in enumerate(read.action.leaves):
        if leaf is not None:
            units, first = np.unique(leaf.gain, return_index=True)
            new = (units > 0) & (layer[units] < 0)
            layer[units[new]], number[units[new]] = place, np.argsort(np.argsort(first[new]))
    names = np.array([*read.action.names, ""], dtype=object)
    columns: dict[str, Any] = {"layer": names[layer[1:]], "unit": number[1:]}
    for when, terms in (("before", found.squares), ("after", after.squares)):
        columns[f"in_{when}"] = unit * np.sqrt(np.bincount(found.to, terms, n + 1)[1:])
        columns[f"out_{when}"] = unit * np.sqrt(np.bincount(found.start, terms, n + 1)[1:])
    return pd.DataFrame({**columns, "scale": np.exp(s[1:]), "dead": ~living})


def _change(read: Model, params: PyTree) -> float:
    """Compare outputs on the sample and on random inputs like it."""
    if read.apply is None:
        return float("nan")
    rng, worst, size = np.random.default_rng(0), 0.0, 0.0

    def drawn(leaf: Any) -> Any:
        return jnp.asarray(rng.normal(size=jnp.shape(leaf)), leaf.dtype) if trees.is_coordinate(leaf) else leaf

    for probe in range(_PROBES):
        x = jax.tree.map(drawn, read.sample) if probe else read.sample
        outputs = [[_widened(y) for y in jax.tree.leaves(read.apply(p, x))] for p in (read.params, params)]
        for before, after in zip(*outputs, strict=True):
            worst = float(np.maximum(worst, np.max(np.abs(after - before), initial=0.0)))  # NaN stays
            size = max(size, float(np.max(np.abs(before), initial=0.0)))
    return worst / (size or 1.0)
