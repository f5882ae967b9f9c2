"""Checks of what the functions of this package are handed, and the rounding unit of what they compute with."""

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .. import _validation
from ..errors import ParameterError, ShapeError
from ..trees import PyTree

P = ParamSpec("P")
T = TypeVar("T")

_UNKNOWN_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def as_real(name: str, value: Any) -> float:
    """Turn one real number into a float; strings are none.

    **Raises:** `ParameterError`.
    """
    try:
        return _validation.as_number(name, None if isinstance(value, str) else value)
    except (ParameterError, OverflowError) as error:
        raise ParameterError(f"{name} is {value!r}", "one real number", f"pass {name} as a float") from error


def as_positive(name: str, value: Any) -> float:
    """Turn a positive, finite number into a float, or raise `ParameterError`."""
    number = as_real(name, value)
    if not 0 < number < float("inf"):
        raise ParameterError(f"{name} is {value!r}", "a positive, finite number", f"pass {name} above 0")
    return number


def as_count(name: str, value: Any, least: int = 1) -> int:
    """Turn a whole number of at least `least` into an integer, or raise `ParameterError`."""
    try:
        whole = operator.index(value)
    except TypeError:
        number = as_real(name, value)
        whole = int(number) if number.is_integer() else least - 1
    if whole < least:
        raise ParameterError(f"{name} is {value!r}", f"a whole number, at least {least}", f"pass {name} as an integer")
    return whole


def as_theta(theta: Any, size: int) -> Array:
    """Turn coordinates (K, Q) or (K,) into an array of real numbers.

    **Raises:** `ShapeError`, `ParameterError`.
    """
    array = _validation.as_array(theta, "theta") if theta is not None else jnp.zeros(0)
    if jnp.iscomplexobj(array):
        raise ParameterError("theta is complex", "real coordinates", "take the real form, as `Basis` has it")
    if array.ndim not in (1, 2) or array.shape[0] != size:
        given = "None" if theta is None else f"of shape {array.shape}"
        raise ShapeError(
            f"theta is {given}", f"one row for each mode: ({size}, Q), or ({size},)", "see `fb.canonical.coordinates`"
        )
    return array if jnp.issubdtype(array.dtype, jnp.inexact) else array.astype(float)


def as_rows(name: str, values: Any, times: Any) -> tuple[np.ndarray, np.ndarray]:
    """Turn times (T,) and rows of numbers (T, r), T and r at least 1, into arrays.

    **Raises:** `ShapeError`.
    """
    try:
        rows, when = np.asarray(values, float), np.asarray(times, float)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"{name} or times are no numbers: {error}", "(T, r) and (T,)", "check their rows") from error
    if rows.ndim != 2 or not rows.size or when.shape != rows.shape[:1]:
        raise ShapeError(
            f"{name} has shape {rows.shape} and times {when.shape}",
            "(T, r) and (T,), T and r at least 1",
            f"pass one row of {name} for each time",
        )
    return rows, when


def epsilon(*trees: PyTree) -> float:
    """Give the rounding unit of what is computed with these arrays: that of the coarsest of their types."""
    kinds = [getattr(leaf, "dtype", None) for leaf in jax.tree.leaves(trees)]
    real = [kind for kind in kinds if kind is not None and jnp.issubdtype(kind, jnp.inexact)]
    return max(float(jnp.finfo(kind).eps) for kind in [jnp.result_type(float), *real])


def concrete(function: Callable[P, T]) -> Callable[P, T]:
    """Make a function that looks at values say so where `jit`, `grad` or `vmap` hides them.

    **Raises:** `ParameterError`.
    """
    takes_rule = "rule" in inspect.signature(function).parameters

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except (ParameterError, *_UNKNOWN_VALUES) as error:
            # What this function calls may have said so already, of itself.
            cause = error.__cause__ if isinstance(error, ParameterError) else error
            if not isinstance(cause, _UNKNOWN_VALUES):
                raise
            fix = "call it outside of the transformation"
            if takes_rule and kwargs.get("rule") is None:
                fix = "pass `rule=fb.canonical.quadrature(basis)`, made outside, or " + fix
            raise ParameterError(
                f"{function.__name__} was called inside a JAX transformation (jit, grad, vmap, …)",
                "values that it can look at",
                fix,
            ) from cause

    return wrapped
