from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fibration.datasets._dataset import Dataset, Values
from fibration.errors import ApplyError, EmptyDataError, NonFiniteDataError, ShapeError, UnknownNameError


def teacher_student(
    apply: Callable[..., Any],
    params: Any,
    inputs: Values | tuple[int, int],
    *,
    noise: float = 0.0,
    seed: int = 0,
) -> Dataset:
    """Targets that some parameters of a network are known to fit: `targets = apply(params, inputs) + noise · normal`.

    **Arguments:** `apply`: `apply(params, x)` for one sample x (d,), returning (Q,) or a number; `params`: the
    teacher's parameters, any pytree; `inputs`: (N, …), or the pair (N, d) for inputs drawn from the standard normal
    distribution; `noise`: standard deviation of the noise on each target; `seed`: of NumPy's `default_rng`, for inputs
    and noise.

    **Returns:** inputs (N, …) and targets (N, Q), float64. The teacher runs in JAX's current precision: without
    `jax_enable_x64` its targets are accurate to float32 only.

    **Raises:** `ApplyError` if `apply` fails on one sample or returns more than one axis; `EmptyDataError`;
    `NonFiniteDataError` if inputs, targets or noise are NaN or infinite.

    ```python
    >>> import numpy as np
    >>> from fibration.datasets import teacher_student
    >>> inputs, targets = teacher_student(lambda w, x: w @ x, np.ones((1, 3)), (20, 3))
    >>> inputs.shape, targets.shape, bool(np.allclose(targets[:, 0], inputs.sum(axis=1), atol=1e-5))
    ((20, 3), (20, 1), True)

    ```
    """
    import jax

    generator = np.random.default_rng(seed)
    if isinstance(inputs, tuple) and len(inputs) == 2 and all(isinstance(size, int | np.integer) for size in inputs):
        n, d = cast(tuple[int, int], inputs)
        _check_count(n=n, d=d)
        x = generator.standard_normal((n, d))
    else:
        x = np.asarray(inputs, np.float64)
        if x.ndim == 0 or x.size == 0:
            raise EmptyDataError(f"inputs have shape {x.shape}", "at least one sample", "pass (N, …)")
    try:
        answers = np.asarray(jax.vmap(apply, in_axes=(None, 0))(params, x), np.float64)
    except Exception as error:
        raise ApplyError(
            f"`apply` failed on one sample of shape {x.shape[1:]} ({type(error).__name__}: {error})"[:400].rstrip("."),
            "`apply(params, x)` for one sample x",
            "try `apply(params, inputs[0])`",
        ) from error
    if answers.ndim > 2:
        raise ApplyError(f"`apply` returns shape {answers.shape[1:]}", "(Q,) or a number", "ravel its result")
    targets = answers.reshape(len(x), -1)
    if noise != 0:
        targets = targets + noise * generator.standard_normal(targets.shape)
    _check_finite(inputs=x, targets=targets)
    return Dataset(x, targets)


def gaussian_clusters(
    n_classes: int,
    samples_per_class: int,
    dim: int,
    *,
    spread: float = 0.05,
    seed: int = 0,
    means: str | Values = "simplex",
    radius: float = 1.0,
) -> Dataset:
    """Normal clouds around one mean for each class: `x = means[label] + spread · normal`.

    **Arguments:** `n_classes`: Q; `samples_per_class`: n; `dim`: d; `spread`: standard deviation along each axis;
    `seed`: of NumPy's `default_rng`; `means`: `"simplex"` for the corners of a regular simplex about the origin, which
    needs d ≥ Q−1 and puts any two means `radius · √(2Q/(Q−1))` apart; `"random"` for uniform random directions; or (Q,
    d) numbers, which are used as they are; `radius`: length of each mean, for the first two.

    **Returns:** inputs (Q·n, d) float64, class after class; targets (Q·n,) int64.

    **Raises:** `ShapeError` if d is too small for a simplex or given means are not (Q, d); `UnknownNameError` for
    another name; `EmptyDataError`; `NonFiniteDataError`.

    ```python
    >>> from fibration.datasets import gaussian_clusters
    >>> inputs, targets = gaussian_clusters(3, 2, dim=5)
    >>> inputs.shape, targets
    ((6, 5), array([0, 0, 1, 1, 2, 2]))

    ```
    """
    _check_count(n_classes=n_classes, samples_per_class=samples_per_class, dim=dim)
    generator = np.random.default_rng(seed)
    if not isinstance(means, str):
        centres = np.asarray(means, np.float64)
        if centres.shape != (n_classes, dim):
            raise ShapeError(f"means have shape {centres.shape}", f"{(n_classes, dim)}", "give one mean for each class")
    elif means == "simplex":
        centres = radius * _simplex(n_classes, dim)
    elif means == "random":
        directions = generator.standard_normal((n_classes, dim))
        centres = radius * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    else:
        raise UnknownNameError(f"means = {means!r}", "'simplex', 'random' or an array", "choose one of these")
    labels = np.repeat(np.arange(n_classes, dtype=np.int64), samples_per_class)
    inputs = centres[labels] + spread * generator.standard_normal((len(labels), dim))
    _check_finite(inputs=inputs)
    return Dataset(inputs, labels)


def fourier_target(
    n: int,
    frequencies: Values,
    *,
    dim: int = 1,
    seed: int = 0,
    amplitudes: Values | None = None,
    grid: bool = False,
) -> Dataset:
    """A sum of cosines on the box [0, 1]^d: `y_q(x) = Σ_m amplitudes[m, q] Π_j cos(π · frequencies[m, j] · x_j)`.

    **Arguments:** `n`: number of samples, or of grid points along each axis; `frequencies`: (M, d), or (M,) if d = 1,
    in half periods over the box; `dim`: d; `seed`: of NumPy's `default_rng`, for uniform random samples; `amplitudes`:
    (M,) or (M, Q), all 1 by default; `grid`: take the midpoints (i + 1/2)/n of a regular grid instead of random
    samples, on which cosines of different whole frequencies below n are exactly orthogonal.

    **Returns:** inputs (N, d) with N = n, or n^d if `grid`; targets (N, Q), Q = 1 by default; float64.

    **Raises:** `ShapeError` if shapes do not fit; `EmptyDataError`; `NonFiniteDataError`.

    ```python
    >>> from fibration.datasets import fourier_target
    >>> inputs, targets = fourier_target(4, [[1, 0], [2, 3]], dim=2, amplitudes=[1.0, 0.5], grid=True)
    >>> inputs.shape, targets.shape
    ((16, 2), (16, 1))

    ```
    """
    _check_count(n=n, dim=dim)
    waves = np.asarray(frequencies, np.float64)
    if dim == 1 and waves.ndim == 1:
        waves = waves[:, None]
    if waves.ndim != 2 or waves.shape[1] != dim or len(waves) == 0:
        raise ShapeError(
            f"frequencies have shape {waves.shape}", f"(M, {dim}) with M ≥ 1", "give one row for each cosine"
        )
    heights = np.ones((len(waves), 1)) if amplitudes is None else np.asarray(amplitudes, np.float64)
    if heights.ndim == 1:
        heights = heights[:, None]
    if heights.ndim != 2 or len(heights) != len(waves) or heights.shape[1] == 0:
        raise ShapeError(
            f"amplitudes have shape {heights.shape}",
            f"({len(waves)},) or ({len(waves)}, Q)",
            "give one for each cosine",
        )
    _check_finite(frequencies=waves, amplitudes=heights)
    if grid:
        axis = (np.arange(n) + 0.5) / n
        inputs = np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), axis=-1).reshape(-1, dim)
    else:
        inputs = np.random.default_rng(seed).random((n, dim))
    # One cosine at a time: all of them together would take N·M·d numbers.
    targets = np.zeros((len(inputs), heights.shape[1]))
    for wave, height in zip(waves, heights, strict=True):
        targets += np.prod(np.cos(np.pi * wave * inputs), axis=1)[:, None] * height
    return Dataset(inputs, targets)


def low_frequency(n: int, *, dim: int = 1, frequency: float = 1.0, seed: int = 0, grid: bool = False) -> Dataset:
    """One slow cosine on the box [0, 1]^d, easy to learn: `y(x) = Π_j cos(π · frequency · x_j)`.

    **Arguments:** `frequency`: the same along each axis, in half periods over the box; the others as for
    `fourier_target`.

    **Returns:** inputs (N, d) and targets (N, 1), float64.

    **Raises:** as `fourier_target`.

    ```python
    >>> from fibration.datasets import low_frequency
    >>> low_frequency(2, grid=True).targets.round(3)
    array([[ 0.707],
           [-0.707]])

    ```
    """
    return fourier_target(n, [[frequency] * dim], dim=dim, seed=seed, grid=grid)


def high_frequency(n: int, *, dim: int = 1, frequency: float = 8.0, seed: int = 0, grid: bool = False) -> Dataset:
    """One fast cosine on the box [0, 1]^d, hard to learn: `y(x) = Π_j cos(π · frequency · x_j)`.

    **Arguments:** as for `low_frequency`, with 8 half periods instead of 1.

    **Returns:** inputs (N, d) and targets (N, 1), float64.

    **Raises:** as `fourier_target`.

    ```python
    >>> from fibration.datasets import high_frequency
    >>> high_frequency(5, dim=2).inputs.shape
    (5, 2)

    ```
    """
    return fourier_target(n, [[frequency] * dim], dim=dim, seed=seed, grid=grid)


def _simplex(corners: int, dim: int) -> NDArray[np.float64]:
    """Corners of a regular simplex: unit vectors (corners, dim) with inner products −1/(corners−1)."""
    if corners == 1:
        return np.zeros((1, dim))
    if dim < corners - 1:
        raise ShapeError(
            f"dim = {dim} for {corners} classes",
            f"dim ≥ {corners - 1} for a simplex",
            "raise `dim` or use means='random'",
        )
    result = np.zeros((corners, dim))
    for k in range(1, corners):
        # The k-th Helmert vector: orthogonal to the ones before it and to (1, …, 1).
        result[:k, k - 1] = 1 / np.sqrt(k * (k + 1))
        result[k, k - 1] = -k / np.sqrt(k * (k + 1))
    return result * np.sqrt(corners / (corners - 1))


def _check_count(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise EmptyDataError(f"{name} = {count}", "at least 1", f"raise `{name}`")


def _check_finite(**arrays: NDArray[np.float64]) -> None:
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise NonFiniteDataError(f"{name} hold NaN or infinity", "finite numbers", "check the arguments")
