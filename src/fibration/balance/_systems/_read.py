"""Linear systems as they come: four arrays, or one object of SciPy, python-control or any other kind like it."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ...errors import ParameterError, ShapeError
from ...trees import is_traced
from .._arrays import read_matrix, widened


class LinearSystem(NamedTuple):
    """A linear system: x' = A x + B u, or x(k + 1) = A x(k) + B u(k), with y = C x + D u.

    - `A` (n, n), `B` (n, m), `C` (p, n), `D` (p, m).
    - `dt`: None for continuous time; True or the sampling time for discrete time.

    Every function on linear systems takes one as its first argument.
    """

    A: Any
    B: Any
    C: Any
    D: Any
    dt: Any = None


@dataclasses.dataclass(frozen=True)
class System:
    """A system to compute with: NumPy matrices in double precision, and the way back.

    - `discrete`: whether x(k + 1) = A x(k) + …, rather than x' = A x + ….
    - `back`: rounds one matrix to the kind and type that was given.
    - `rebuild`: makes of [A, B, C, D] an object of the kind that was given.
    """

    A: Any
    B: Any
    C: Any
    D: Any
    discrete: bool
    back: Callable[[Any], Any]
    rebuild: Callable[[Sequence[Any]], Any]

    def replaced(self, A: Any, B: Any, C: Any, D: Any = None) -> "System":
        """Put other matrices in the place of these."""
        return dataclasses.replace(self, A=A, B=B, C=C, D=self.D if D is None else D)


def read_system(A: Any, Bm: Any = None, C: Any = None, D: Any = None, dt: Any = None) -> System:
    """Read a system from its matrices, or from one object that holds them.

    **Raises:** `ShapeError`, `NonFiniteDataError`, `ParameterError`.
    """
    if Bm is None and C is None:
        if not all(hasattr(A, name) for name in "ABCD"):
            raise ShapeError(
                f"one argument, of type {type(A).__name__}",
                "matrices A, B and C, or one object with the attributes A, B, C, D and dt",
                "turn a transfer function into a state space first: `system.to_ss()`, `control.ss(system)`",
            )
        if D is not None or dt is not None:
            raise ParameterError(
                f"D or dt beside an object of type {type(A).__name__}", "only one of each", "they are read from it"
            )
        return _read({name: getattr(A, name) for name in "ABCD"}, getattr(A, "dt", None), A)
    return _read({"A": A, "B": Bm, "C": C, "D": D}, dt, None)


def _read(names: dict[str, Any], dt: Any, given: Any) -> System:
    """Read matrices under their names, and say how results get back into the kind that was given."""
    if names["D"] is None:
        del names["D"]
    missing = [name for name, matrix in names.items() if matrix is None]
    if missing:
        raise ShapeError(f"a system without {' and '.join(missing)}", "A, B and C", "pass all three")
    if any(is_traced(matrix) for matrix in names.values()):
        raise ParameterError(
            "a linear system within a JAX transformation",
            "numbers: the algorithms look at poles and ranks, and run on the host",
            "call it outside of `jit`, `vmap` and `grad`",
        )
    arrays = {name: read_matrix(matrix, name) for name, matrix in names.items()}
    _check_shapes({name: array.shape for name, array in arrays.items()})
    xp = np if all(isinstance(array, np.ndarray) for array in arrays.values()) else jnp
    dtype = xp.result_type(*arrays.values())

    def back(matrix: Any) -> Any:
        matrix = np.asarray(matrix)
        wanted = dtype if matrix.dtype.kind == "c" or not jnp.issubdtype(dtype, jnp.complexfloating) else None
        return xp.asarray(matrix.astype(wanted or jnp.finfo(dtype).dtype))

    wide = [np.asarray(widened(array, False)) for array in arrays.values()]
    if any(matrix.dtype.kind == "c" for matrix in wide):
        wide = [matrix.astype(complex) for matrix in wide]
    a, b, c = wide[:3]
    d = wide[3] if len(wide) > 3 else np.zeros((len(c), b.shape[1]), a.dtype)

    def rebuild(matrices: Sequence[Any]) -> Any:
        return _like(given, [back(matrix) for matrix in matrices], dt)

    return System(a, b, c, d, _is_discrete(dt), back, rebuild)


def _check_shapes(shapes: dict[str, tuple[int, ...]]) -> None:
    a, b, c = (shapes[name] for name in "ABC")
    fits = a[0] == a[1] == b[0] == c[1] and shapes.get("D", (c[0], b[1])) == (c[0], b[1])
    if not fits:
        raise ShapeError(
            ", ".join(f"{name} of shape {shape}" for name, shape in shapes.items()),
            "A (n, n), B (n, m), C (p, n) and D (p, m)",
            "a column of B belongs to an input, a row of C to an output; a vector needs a second axis",
        )


def _is_discrete(dt: Any) -> bool:
    """Tell discrete from continuous time."""
    if dt is None or dt is True:
        return dt is True
    number = isinstance(dt, int | float | np.integer | np.floating) and not isinstance(dt, bool)
    if not (number and 0 <= dt < math.inf):
        raise ParameterError(
            f"dt = {dt!r}", "None for continuous time; True or a positive sampling time for discrete time", "choose one"
        )
    return bool(dt > 0)


def _like(given: Any, matrices: Sequence[Any], dt: Any) -> Any:
    """Make a system of the kind that was given; a `LinearSystem` if that were matrices."""
    if given is None:
        return LinearSystem(*matrices, dt=dt)
    if type(given).__module__.startswith("scipy.signal"):
        from scipy.signal import StateSpace  # slow to import, and there if its object was given

        return StateSpace(*matrices) if dt is None else StateSpace(*matrices, dt=dt)
    try:
        return type(given)(*matrices, dt)
    except (TypeError, ValueError) as error:
        kind = f"{type(given).__module__}.{type(given).__name__}"
        raise ParameterError(
            f"{kind}(A, B, C, D, dt) raises {type(error).__name__}: {error}",
            "an object of SciPy, python-control, or a kind that is made of A, B, C, D and dt",
            "pass its matrices instead",
        ) from error
