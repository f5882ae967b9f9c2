"""Checks of what a user hands to a problem; each raises a named error, and none computes anything large."""

import difflib
import itertools
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from . import _sharding
from .errors import (
    ApplyError,
    EmptyDataError,
    IntegerDataError,
    MemoryBudgetError,
    NonFiniteDataError,
    OutputDirectoryError,
    ParameterError,
    ShapeError,
    UnknownNameError,
)
from .losses import AbstractLoss
from .trees import PyTree, is_traced


def as_array(values: Any, name: str) -> Array:
    """Turn a user's data into an array, or say why it cannot be."""
    try:
        return jnp.asarray(values)
    except (TypeError, ValueError) as error:
        raise ShapeError(
            f"{name} cannot become an array: {error}",
            "an array of numbers with one row for each sample",
            "check its rows",
        ) from error


def check_samples(inputs: Array, targets: Array) -> None:
    """Check that inputs and targets have one row for each of the same, non-empty set of samples."""
    if inputs.ndim == 0 or targets.ndim == 0:
        raise ShapeError(
            f"inputs have shape {inputs.shape} and targets {targets.shape}",
            "a first axis over the samples in both",
            "add it with `x[None]`",
        )
    if inputs.shape[0] != targets.shape[0]:
        raise ShapeError(
            f"inputs hold {inputs.shape[0]} samples and targets {targets.shape[0]}",
            "one target for each sample",
            "match the first axes; samples are rows",
        )
    if inputs.shape[0] == 0:
        raise EmptyDataError(
            f"inputs have shape {inputs.shape}", "at least one sample", "check how the data was selected"
        )


def as_samples(inputs: Any, targets: Any, allow_integer_inputs: bool) -> tuple[Array, Array]:
    """Turn a user's samples into arrays, real and finite, with one row for each sample."""
    inputs, targets = as_array(inputs, "inputs"), as_array(targets, "targets")
    check_samples(inputs, targets)
    if not jnp.issubdtype(inputs.dtype, jnp.inexact) and not allow_integer_inputs:
        raise IntegerDataError(
            f"inputs are {inputs.dtype}",
            "real inputs",
            "convert them with `.astype(float)`; if the network takes indices, pass `allow_integer_inputs=True`",
        )
    check_finite(inputs, "inputs")
    check_finite(targets, "targets")
    return inputs, targets


def as_budget(memory_budget: Any) -> int | float:
    """Check a memory budget."""
    if not memory_budget > 0:
        raise MemoryBudgetError(
            f"memory_budget = {memory_budget}", "a positive number of bytes", "leave it at its default, 1 GiB"
        )
    return memory_budget


def check_finite(array: Array | np.ndarray, name: str) -> None:
    """Check that an array holds no NaN and no infinity; say where the first one is."""
    if is_traced(array) or not jnp.issubdtype(array.dtype, jnp.inexact):
        return
    if _sharding.is_elsewhere(array) and bool(jnp.all(jnp.isfinite(array))):
        return  # and is not gathered
    bad = np.argwhere(~np.isfinite(_sharding.on_host(array)))
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        raise NonFiniteDataError(
            f"{name} hold {len(bad)} values that are NaN or infinite, the first at index {where}",
            "finite numbers",
            f"drop or fill these samples: `np.isfinite({name})` finds them",
        )


def check_chain(matrices: Sequence[Array | np.ndarray]) -> None:
    """Raise `ShapeError` unless each matrix can be multiplied from the left by the next one."""
    for before, after in itertools.pairwise(matrices):
        if after.shape[1] != before.shape[0]:
            raise ShapeError(
                f"a matrix of shape {after.shape} after one of shape {before.shape}",
                f"{before.shape[0]} columns",
                "list the matrices in the order in which they act, W_1 first",
            )


def as_weights(weights: Any, n_samples: int) -> Array:
    """Turn weights of the samples into a non-negative array (N,)."""
    array = as_array(weights, "weights").astype(jnp.result_type(float))
    if array.shape != (n_samples,):
        raise ShapeError(
            f"weights have shape {array.shape}", f"shape ({n_samples},)", "give one weight for each sample"
        )
    check_finite(array, "weights")
    if not is_traced(array) and bool(jnp.any(array < 0)):
        raise ParameterError("a weight is negative", "non-negative weights", "drop a sample by giving it weight zero")
    return array


def check_parameters(params: PyTree) -> None:
    """Check that parameters have floating-point leaves, all finite."""
    leaves = [leaf for leaf in jax.tree.leaves(params) if eqx.is_inexact_array(leaf)]
    if not leaves:
        kinds = sorted({str(getattr(leaf, "dtype", type(leaf).__name__)) for leaf in jax.tree.leaves(params)})
        raise ParameterError(
            f"parameters hold no floating-point arrays (leaves: {', '.join(kinds) or 'none'})",
            "a pytree with at least one floating-point array",
            "convert them with `jax.tree.map(lambda p: jnp.asarray(p, float), params)`",
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if eqx.is_inexact_array(leaf):
            check_finite(leaf, f"parameters{jax.tree_util.keystr(path)}")


def check_name(argument: str, given: Any, allowed: Collection[str]) -> None:
    """Check a name, or raise `UnknownNameError` with the nearest one allowed."""
    if given not in allowed:
        nearest = difflib.get_close_matches(str(given), allowed, n=1, cutoff=0.0)[0]
        raise UnknownNameError(
            f"{argument} is {given!r}",
            f"one of {', '.join(map(repr, allowed))}",
            f"pass {argument}={nearest!r}, the nearest, or another of them",
        )


def as_number(name: str, value: Any) -> float:
    """Turn one real number into a float, or raise `ParameterError`."""
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ParameterError(f"{name} is {value!r}", "one real number", f"pass {name} as a float") from error


def check_strength(strength: float) -> None:
    """Check the strength of balancing, or raise `ParameterError`."""
    if not 0 <= float(strength) <= 1:
        raise ParameterError(f"strength = {strength}", "a number from 0 (none) to 1 (full)", "leave it out for 1")


def as_loss(loss: Any) -> AbstractLoss:
    """Check that a loss is an instance of a loss."""
    if isinstance(loss, AbstractLoss):
        return loss
    raise ParameterError(
        f"loss is {loss!r}",
        "an instance of a loss, such as fb.CrossEntropy()",
        "call the class, or subclass AbstractLoss",
    )


def check_sample_costs(costs: Any, n_samples: int) -> None:
    """Check that a loss gave one number for each sample."""
    if jnp.shape(costs) != (n_samples,):
        raise ShapeError(
            f"the loss's per_sample returned shape {jnp.shape(costs)}",
            f"one number for each of the {n_samples} samples",
            "sum over the outputs: `jnp.sum(..., axis=-1)`",
        )


def writable_directory(path: str | os.PathLike[str]) -> Path:
    """Make a directory if it is absent, and check that files can be written there.

    **Raises:** `OutputDirectoryError`.
    """
    directory = Path(path)
    probe = directory / f".writable-{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise OutputDirectoryError(
            f"the directory {str(directory)!r} cannot be written: {error.strerror or error}",
            "a directory that can be made and written to",
            "pass another directory, or mend its permissions",
        ) from error
    return directory


def check_apply(
    apply: Callable[..., Any], params: PyTree, batch: jax.ShapeDtypeStruct, n_outputs: int, hint: str
) -> None:
    """Check by abstract evaluation that `apply` maps one sample of a batch to so many outputs.

    **Raises:** `ApplyError`, with the `hint` if it returns another shape.
    """
    sample = jax.ShapeDtypeStruct(batch.shape[1:], batch.dtype)
    shape, failure = output_shape(apply, params, sample)
    if shape in ((n_outputs,), *(((),) if n_outputs == 1 else ())):
        return
    if output_shape(apply, params, batch)[0] == (batch.shape[0], n_outputs):
        raise ApplyError(
            f"apply works on the whole batch {batch.shape} but not on one sample {sample.shape}",
            "an apply(params, x) for ONE sample; Fibration batches it itself",
            "drop the batch axis in apply, or wrap it: `lambda params, x: apply(params, x[None])[0]`",
        ) from failure
    if failure is not None:
        raise ApplyError(
            f"apply raised {type(failure).__name__} on one sample of shape {sample.shape}: {failure}",
            f"an apply(params, x) that maps one sample to {n_outputs} outputs",
            "call `apply(params, inputs[0])` by hand to see the error in full",
        ) from failure
    raise ApplyError(
        f"apply maps one sample of shape {sample.shape} to {'no array' if shape is None else f'shape {shape}'}",
        f"shape ({n_outputs},), the number of outputs in the targets",
        hint,
    )


def output_shape(
    apply: Callable[..., Any], params: PyTree, x: jax.ShapeDtypeStruct
) -> tuple[tuple[int, ...] | None, Exception | None]:
    """Find the shape that `apply` returns, or the exception that it raises, by abstract evaluation."""
    try:
        result = eqx.filter_eval_shape(apply, params, x)
        if hasattr(result, "dtype") and not jnp.issubdtype(result.dtype, jnp.floating):
            raise TypeError(f"its outputs are {result.dtype}, not real numbers")
        return getattr(result, "shape", None), None
    except Exception as error:  # whatever a user's function raises
        return None, error
