from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fibration.datasets._dataset import Dataset
from fibration.datasets._dataset import one_hot as _encode
from fibration.errors import EmptyDataError, ShapeError


def digits(
    samples: int | None = None,
    *,
    seed: int | None = None,
    images: bool = False,
    standardize: bool = False,
    one_hot: bool = False,
) -> Dataset:
    """Handwritten digits, 1797 images of 8 × 8 pixels in 10 classes (scikit-learn's `load_digits`).

    **Arguments:** `samples`: how many, all by default; `seed`: shuffle with this seed and take the first ones; without
    it the classes take turns in giving their next sample until there are enough, and these stay in the order of the
    file; `images`: give images instead of rows; `standardize`: bring each feature of the chosen samples to mean 0 and
    variance 1, constant features to 0; `one_hot`: targets as rows of the unit matrix.

    **Returns:** inputs (N, 64), or (N, 8, 8, 1) if `images`, in [0, 1] unless standardised, float64; targets (N,)
    int64, or (N, 10) float64 if `one_hot`.

    **Raises:** `ShapeError` if there are fewer samples than asked for; `EmptyDataError` if fewer than one is asked for.

    ```python
    >>> from fibration.datasets import digits
    >>> inputs, targets = digits(100)
    >>> inputs.shape, targets[:12]
    ((100, 64), array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]))

    ```
    """
    from sklearn.datasets import load_digits

    inputs, targets = _choose(
        "digits", load_digits, samples, seed, standardize=standardize, one_hot=one_hot, scale=16.0
    )
    return Dataset(inputs.reshape(-1, 8, 8, 1) if images else inputs, targets)


def iris(
    samples: int | None = None, *, seed: int | None = None, standardize: bool = False, one_hot: bool = False
) -> Dataset:
    """Fisher's irises, 150 flowers in 3 classes of 50 (scikit-learn's `load_iris`).

    **Arguments:** as for `digits`.

    **Returns:** inputs (N, 4): sepal length and width, petal length and width, in cm unless standardised, float64;
    targets (N,) int64, or (N, 3) float64 if `one_hot`.

    **Raises:** as `digits`.

    ```python
    >>> from fibration.datasets import iris
    >>> inputs, targets = iris(6)
    >>> inputs.shape, targets
    ((6, 4), array([0, 0, 1, 1, 2, 2]))

    ```
    """
    from sklearn.datasets import load_iris

    return _choose("iris", load_iris, samples, seed, standardize=standardize, one_hot=one_hot)


def wine(
    samples: int | None = None, *, seed: int | None = None, standardize: bool = False, one_hot: bool = False
) -> Dataset:
    """Chemical analyses of 178 Italian wines in 3 classes (scikit-learn's `load_wine`).

    **Arguments:** as for `digits`.

    **Returns:** inputs (N, 13) in the units of the analyses, whose scales differ by 10⁴ unless standardised, float64;
    targets (N,) int64, or (N, 3) float64 if `one_hot`.

    **Raises:** as `digits`.

    ```python
    >>> from fibration.datasets import wine
    >>> inputs, targets = wine(standardize=True)
    >>> inputs.shape, float(inputs.var().round(12))
    ((178, 13), 1.0)

    ```
    """
    from sklearn.datasets import load_wine

    return _choose("wine", load_wine, samples, seed, standardize=standardize, one_hot=one_hot)


def breast_cancer(
    samples: int | None = None, *, seed: int | None = None, standardize: bool = False, one_hot: bool = False
) -> Dataset:
    """Measurements of 569 tumours, malignant (0) or benign (1) (scikit-learn's `load_breast_cancer`).

    **Arguments:** as for `digits`.

    **Returns:** inputs (N, 30) in the units of the measurements unless standardised, float64; targets (N,) int64, or
    (N, 2) float64 if `one_hot`.

    **Raises:** as `digits`.

    ```python
    >>> from fibration.datasets import breast_cancer
    >>> inputs, targets = breast_cancer(4, one_hot=True)
    >>> inputs.shape, targets.shape
    ((4, 30), (4, 2))

    ```
    """
    from sklearn.datasets import load_breast_cancer

    return _choose("breast_cancer", load_breast_cancer, samples, seed, standardize=standardize, one_hot=one_hot)


def diabetes(samples: int | None = None, *, seed: int | None = None, standardize: bool = False) -> Dataset:
    """Progression of diabetes in 442 patients, for regression (scikit-learn's `load_diabetes`).

    **Arguments:** `samples`, `seed`, `standardize`: as for `digits`, but without a seed the first samples are taken.

    **Returns:** inputs (N, 10), each feature with mean 0 and sum of squares 1 over all patients unless standardised,
    float64; targets (N, 1) float64, the disease's progression after a year, from 25 to 346, never standardised.

    **Raises:** as `digits`.

    ```python
    >>> from fibration.datasets import diabetes
    >>> inputs, targets = diabetes(100, seed=0)
    >>> inputs.shape, targets.shape
    ((100, 10), (100, 1))

    ```
    """
    from sklearn.datasets import load_diabetes

    return _choose("diabetes", load_diabetes, samples, seed, standardize=standardize, one_hot=False)


def _choose(
    name: str,
    load: Callable[..., Any],
    samples: int | None,
    seed: int | None,
    *,
    standardize: bool,
    one_hot: bool,
    scale: float = 1.0,
) -> Dataset:
    raw, answers = cast(tuple[NDArray[Any], NDArray[Any]], load(return_X_y=True))
    labelled = answers.dtype.kind in "iu"
    inputs = raw.astype(np.float64) / scale
    count = len(inputs) if samples is None else samples
    if count < 1:
        raise EmptyDataError(f"samples = {count}", "at least 1", "leave `samples` out to take them all")
    if count > len(inputs):
        raise ShapeError(f"samples = {count}", f"at most {len(inputs)}, the size of {name}", "ask for fewer")
    if seed is not None:
        chosen = np.random.default_rng(seed).permutation(len(inputs))[:count]
    elif labelled:
        chosen = _balanced(answers, count)
    else:
        chosen = np.arange(count)
    inputs = inputs[chosen]
    if standardize:
        inputs = _standardised(inputs)
    if not labelled:
        return Dataset(inputs, answers[chosen].astype(np.float64)[:, None])
    targets = answers[chosen].astype(np.int64)
    # Every class keeps its column even if the chosen samples lack it.
    return Dataset(inputs, _encode(targets, int(answers.max()) + 1) if one_hot else targets)


def _balanced(labels: NDArray[Any], count: int) -> NDArray[np.intp]:
    """Indices of `count` samples, the classes in turn, in increasing order."""
    turn = np.empty(len(labels), np.intp)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        turn[members] = np.arange(len(members))
    return np.sort(np.lexsort((labels, turn))[:count])


def _standardised(inputs: NDArray[np.float64]) -> NDArray[np.float64]:
    # Compared exactly: the mean of equal numbers may differ from them by rounding, and so may their variance from 0.
    constant = np.all(inputs == inputs[0], axis=0)
    deviation = np.where(constant, 1.0, inputs.std(axis=0))
    return np.where(constant, 0.0, (inputs - inputs.mean(axis=0)) / deviation)
