from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fibration.errors import EmptyDataError, FileFormatError, NonFiniteDataError, ShapeError, UnknownNameError

# NumPy's own ArrayLike leaves out nested tuples when it is checked at run time.
Values = ArrayLike | Sequence[Any]


class Dataset(NamedTuple):
    """Samples and what a network should answer to each; it unpacks as `inputs, targets`.

    **Attributes:** `inputs`: (N, …) floating; `targets`: (N,) integer classes or (N, Q) real numbers.

    ```python
    >>> import numpy as np
    >>> from fibration.datasets import Dataset
    >>> inputs, targets = Dataset(np.zeros((5, 2)), np.arange(5))
    >>> inputs.shape, targets.shape
    ((5, 2), (5,))

    ```
    """

    inputs: NDArray[np.floating]
    targets: NDArray[Any]


def one_hot(labels: Values, n_classes: int | None = None) -> NDArray[np.float64]:
    """Write each class as a row of the unit matrix: `result[i, q] = 1 if labels[i] == q else 0`.

    **Arguments:** `labels`: (N,) integers from 0 to Q−1; `n_classes`: Q, by default the largest label plus one.

    **Returns:** (N, Q) float64.

    **Raises:** `ShapeError` unless `labels` are one-dimensional; `EmptyDataError` if there are none; `UnknownNameError`
    if a label is not an integer from 0 to Q−1.

    ```python
    >>> from fibration.datasets import one_hot
    >>> one_hot([0, 2], n_classes=3)
    array([[1., 0., 0.],
           [0., 0., 1.]])

    ```
    """
    array = np.asarray(labels)
    if array.ndim != 1:
        raise ShapeError(f"labels have shape {array.shape}", "shape (N,)", "pass one integer for each sample")
    if array.size == 0:
        raise EmptyDataError("there are no labels", "at least one", "check what was loaded")
    if array.dtype.kind not in "iu":
        raise UnknownNameError(
            f"labels are {array.dtype}", "integers from 0 to Q-1", "use `np.unique(labels, return_inverse=True)[1]`"
        )
    low, high = int(array.min()), int(array.max())
    count = high + 1 if n_classes is None else n_classes
    if low < 0 or high >= count:
        raise UnknownNameError(
            f"labels run from {low} to {high}", f"integers from 0 to {count - 1}", "renumber them or raise `n_classes`"
        )
    encoded = np.zeros((array.size, count))
    encoded[np.arange(array.size), array] = 1.0
    return encoded


def as_dataset(inputs: NDArray[Any], targets: NDArray[Any], source: str) -> Dataset:
    """Check arrays from a file and bring them into the form that `Dataset` promises.

    **Arguments:** `inputs`: (N, …) or (N,), real; `targets`: (N,) or (N, Q), real; `source`: the file, for messages.

    **Returns:** inputs (N, …), with (N,) widened to (N, 1); whole-number `targets` of shape (N,) stay classes (int64),
    real ones of shape (N,) become (N, 1). Floating types are kept, others become float64.

    **Raises:** `ShapeError`, `EmptyDataError`, `FileFormatError` (complex numbers, text), `NonFiniteDataError`.
    """
    for name, array in (("inputs", inputs), ("targets", targets)):
        if array.dtype.kind not in "biuf":
            raise FileFormatError(f"{name} of {source} are {array.dtype}", "real numbers", f"convert the {name}")
        if array.ndim == 0:
            raise ShapeError(f"{name} of {source} are a single number", "one row for each sample", "save an array")
        if array.size == 0:
            raise EmptyDataError(
                f"{name} of {source} have shape {array.shape}", "at least one sample", "check the file"
            )
    if len(inputs) != len(targets):
        raise ShapeError(
            f"{source} holds {len(inputs)} inputs and {len(targets)} targets",
            "one target for each input",
            "check that both come from the same split of the data",
        )
    if targets.ndim > 2:
        raise ShapeError(f"targets of {source} have shape {targets.shape}", "(N,) or (N, Q)", "flatten each target")
    if targets.ndim == 1 and targets.dtype.kind in "biu":
        if targets.dtype.kind == "u" and int(targets.max()) > np.iinfo(np.int64).max:
            raise FileFormatError(
                f"a label in {source} is {targets.max()}", "labels of at most 63 bits", "renumber the classes from 0"
            )
        finished = targets.astype(np.int64, copy=False)
    else:
        finished = as_floating(targets.reshape(len(targets), -1), f"targets of {source}")
    return Dataset(as_floating(inputs.reshape(-1, 1) if inputs.ndim == 1 else inputs, f"inputs of {source}"), finished)


def as_floating(array: NDArray[Any], name: str) -> NDArray[np.floating]:
    """Convert to a floating type in native byte order; raise `NonFiniteDataError` at the first NaN or infinity."""
    if array.dtype.kind == "f":
        real = array.astype(array.dtype.newbyteorder("="), copy=False)
    else:
        real = array.astype(np.float64)
    finite = np.isfinite(real)
    if not finite.all():
        # argmin of booleans is the first False, in the order of the rows.
        where = tuple(int(index) for index in np.unravel_index(int(np.argmin(finite)), real.shape))
        raise NonFiniteDataError(
            f"{name} hold {real[where]} at index {where}", "finite numbers", "drop that sample or fill the gap"
        )
    return real
