"""Class means and scatter in one pass over the samples, however many there are."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from ..errors import EmptyDataError, NonFiniteDataError, ShapeError, UnknownNameError

CHUNK_BYTES = 2**20  # what a processor keeps close by; larger chunks take twice as long


@dataclass(frozen=True, eq=False)
class Classes:
    """Labelled samples, read in chunks of rows.

    `inputs` (N, M): any array that slices into rows, such as a memory map; `names` (Q,): the labels, sorted; `numbers`
    (N,): each sample's class as an index of `names`; `counts` (Q,); `weights` (Q,): of one sample of each class.
    """

    inputs: Any
    names: Shaped[np.ndarray, " Q"]
    numbers: Int[np.ndarray, " N"]
    counts: Int[np.ndarray, " Q"]
    weights: Float[np.ndarray, " Q"]

    @property
    def totals(self) -> Float[np.ndarray, " Q"]:
        """D_j: the total weight of each class."""
        return self.weights * self.counts

    def chunks(self) -> Iterator[tuple[Float[np.ndarray, "n M"], Int[np.ndarray, " n"]]]:
        """Iterate over blocks of rows in double precision, and their classes."""
        rows = max(1, CHUNK_BYTES // max(1, 8 * self.inputs.shape[1]))
        for start in range(0, len(self.numbers), rows):
            block = np.asarray(self.inputs[start : start + rows], np.float64)
            if not np.isfinite(block.sum()) and not np.all(np.isfinite(block)):
                bad = start + int(np.flatnonzero(~np.all(np.isfinite(block), axis=1))[0])
                raise NonFiniteDataError(f"sample {bad} holds NaN or infinity", "finite inputs", "drop or repair it")
            yield block, self.numbers[start : start + rows]


def as_classes(inputs: Any, labels: Any, weights: Any) -> Classes:
    """Check inputs (N, …), labels (N,) and weights, and group the samples."""
    try:
        sliceable = (
            hasattr(inputs, "shape") and hasattr(inputs, "__getitem__") and np.dtype(inputs.dtype).kind in "fiub"
        )
    except (AttributeError, TypeError):
        sliceable = False
    try:
        array = inputs if sliceable else np.asarray(inputs)
    except ValueError as error:
        raise ShapeError(
            f"inputs that are no array ({error})", "real inputs (N, M)", "give all rows one length"
        ) from None
    if len(array.shape) == 0 or 0 in array.shape:
        raise EmptyDataError(f"inputs of shape {tuple(array.shape)}", "at least one sample", "pass (N, M)")
    if len(array.shape) == 1 or np.dtype(array.dtype).kind not in "fiub":
        raise ShapeError(
            f"inputs of shape {tuple(array.shape)} and type {array.dtype}",
            "real inputs (N, M), a row for each sample",
            "reshape a single sample to (1, M), or a single feature to (N, 1); make columns of text numbers",
        )
    if len(array.shape) > 2:
        array = np.asarray(array).reshape(len(array), -1)
    try:
        names, numbers, counts = np.unique(np.asarray(labels).ravel(), return_inverse=True, return_counts=True)
    except TypeError:
        raise ShapeError(
            "labels of several types, or with missing ones",
            "labels of one type",
            "make them all numbers, or all strings",
        ) from None
    if len(numbers) != len(array):
        raise ShapeError(
            f"{len(array)} samples and {len(numbers)} labels",
            "one label for each sample",
            "drop the surplus; of one-hot rows take the argmax",
        )
    if names.dtype.kind == "f" and not np.all(np.isfinite(names)):
        raise NonFiniteDataError("labels hold NaN or infinity", "finite labels", "drop or repair those samples")
    return Classes(array, names, numbers.ravel(), counts, _sample_weights(weights, counts))


def _sample_weights(weights: Any, counts: Int[np.ndarray, " Q"]) -> Float[np.ndarray, " Q"]:
    if isinstance(weights, str):
        if weights == "class":
            return 1.0 / counts
        if weights == "sample":
            return np.full(len(counts), 1.0 / counts.sum())
        raise UnknownNameError(
            f"weights = {weights!r}", '"class", "sample", or a weight for each class', 'leave it at "class"'
        )
    try:
        given = np.asarray(weights, np.float64)
    except (TypeError, ValueError):
        given = np.full(1, np.nan)
    if given.shape != counts.shape or not np.all(np.isfinite(given)) or not np.all(given > 0):
        raise ShapeError(
            f"weights = {weights!r}"[:200],
            f"{len(counts)} positive numbers, the total weight of each class in the order of the sorted labels",
            'pass one for each class, or "class" or "sample"',
        )
    return given / counts


@dataclass(frozen=True, eq=False)
class ClassStatistics:
    """Weighted moments of labelled samples.

    `counts` (Q,); `totals` (Q,): D_j, the total weight of a class; `means` (Q, M): of the classes; `scatter` (M, M):
    S = Σ α (x − x̄)(x − x̄)ᵀ about them; `centre` (M,): the mean of the class means.
    """

    counts: Int[np.ndarray, " Q"]
    totals: Float[np.ndarray, " Q"]
    means: Float[np.ndarray, "Q M"]
    scatter: Float[np.ndarray, "M M"]

    @property
    def centre(self) -> Float[np.ndarray, " M"]:
        """x̄, the mean of the class means."""
        return self.means.mean(axis=0)

    @property
    def spreads(self) -> Float[np.ndarray, " M"]:
        """The root mean square deviation of each feature from the centre, in the weights given; 1 if it is constant."""
        between = self.totals @ (self.means - self.centre) ** 2
        sizes = np.sqrt(np.maximum(np.diagonal(self.scatter), 0) + between) / np.sqrt(self.totals.sum())
        return np.where(sizes > 1e-13 * np.max(np.abs(self.means), axis=0), sizes, 1.0)


def class_statistics(classes: Classes) -> ClassStatistics:
    """Accumulate counts, means and scatter in one pass; memory: two chunks, Q × M and M × M."""
    n_classes, dimension = len(classes.names), classes.inputs.shape[1]
    shifts = np.zeros((n_classes, dimension))
    known = np.zeros(n_classes, bool)
    sums = np.zeros((n_classes, dimension))
    scatter = np.zeros((dimension, dimension))
    roots = np.sqrt(classes.weights)
    for block, numbers in classes.chunks():
        # Sums about the first sample of the class keep the digits of a tight cluster far from the origin.
        for j in np.unique(numbers[~known[numbers]]):
            shifts[j], known[j] = block[np.argmax(numbers == j)], True
        away = block - shifts[numbers]
        members = np.zeros((n_classes, len(numbers)))
        members[numbers, np.arange(len(numbers))] = 1.0
        sums += members @ away
        away *= roots[numbers][:, None]
        scatter += away.T @ away
    from_shift = sums / classes.counts[:, None]
    # Σα(x − s)(x − s)ᵀ = S + Σ_j D_j(x̄_j − s)(x̄_j − s)ᵀ
    scatter -= (from_shift * classes.totals[:, None]).T @ from_shift
    return ClassStatistics(classes.counts, classes.totals, shifts + from_shift, (scatter + scatter.T) / 2)


def largest_deviations(
    classes: Classes, means: Float[np.ndarray, "Q M"], *matrices: Float[np.ndarray, "_ M"] | None
) -> list[float]:
    """Compute max |B(x − x̄_j)| over all samples, for each of the matrices B, in one pass; `None` is B = I."""
    largest = [0.0] * len(matrices)
    for block, numbers in classes.chunks():
        away = block - means[numbers]
        for index, matrix in enumerate(matrices):
            mapped = away if matrix is None else away @ matrix.T
            largest[index] = float(np.maximum(largest[index], np.max(np.einsum("ij,ij->i", mapped, mapped))))
    return [float(np.sqrt(square)) for square in largest]
