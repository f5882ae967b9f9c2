"""Kinks found in a traced network: operations that are not continuously differentiable in the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..problem import AbstractProblem, Problem
from ..tangent._differential import blocks_of
from ..trees import PyTree

_COMPARISONS = ("gt", "ge", "lt", "le", "max", "min", "sort", "argmax", "argmin", "top_k")
_REDUCTIONS = ("reduce_max", "reduce_min", "cummax", "cummin", "reduce_window_max", "reduce_window_min")
KINKS = frozenset((*_COMPARISONS, *_REDUCTIONS, "abs", "sign", "floor", "ceil", "round", "clamp", "rem"))
# Written with maxima or branches, and continuously differentiable all the same.
_ACTIVATIONS = ("logaddexp", "logaddexp2", "softplus", "log_sigmoid", "elu", "celu", "silu", "gelu", "sigmoid")
SMOOTH = frozenset((*_ACTIVATIONS, "squareplus", "softmax", "log_softmax", "logsumexp", "norm", "erf_inv", "xlogy"))


def kinks(problem: AbstractProblem, params: PyTree) -> tuple[str, ...]:
    """Name what in a problem's network is not continuously differentiable: functions such as "relu", or operations.

    Found by reading the traced program of one sample, not by evaluating it. Counted is only what depends on the
    parameters and is differentiated: a maximum under `stop_gradient` is not.
    """
    found: dict[str, None] = {}
    for block in blocks_of(problem):
        found |= dict.fromkeys(_in_block(block, params))
    return tuple(found)


def _in_block(block: Problem, params: PyTree) -> list[str]:
    leaves, structure = jax.tree.flatten(params)
    varying = [_is_float_array(leaf) for leaf in leaves]

    def apply(arrays: list[Any], x: Any) -> Any:
        given = iter(arrays)
        return block.apply(
            structure.unflatten([next(given) if v else leaf for leaf, v in zip(leaves, varying, strict=True)]), x
        )

    given = [leaf for leaf, v in zip(leaves, varying, strict=True) if v]
    program = jax.make_jaxpr(apply)(given, block.inputs[0]).jaxpr
    depends = [True] * len(given) + [False]
    return _walk(program, depends, "")[0]


def _is_float_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _walk(program: Any, depends: list[bool], name: str) -> tuple[list[str], list[bool]]:
    """List the kinks of a program whose inputs depend on the parameters or not, and tell which outputs do."""
    known = {var for var, dependent in zip(program.invars, depends, strict=True) if dependent}
    alive = _alive(program)
    found: list[str] = []
    for equation in program.eqns:
        inputs = [not hasattr(var, "val") and var in known for var in equation.invars]
        if not any(inputs):
            continue
        known |= set(equation.outvars)
        if not alive & set(equation.outvars):
            continue
        primitive, label = equation.primitive.name, str(equation.params.get("name", ""))
        if label in SMOOTH or primitive.startswith("reduce_precision"):
            continue
        inner = [
            part for part in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program) if _is_program(part)
        ]
        for part in inner:
            body = getattr(part, "jaxpr", part)
            same = len(body.invars) == len(inputs)
            parts, _ = _walk(body, inputs if same else [True] * len(body.invars), _better(label, name))
            found += parts
        if primitive in KINKS and not inner:
            found.append(name or primitive)
    return list(dict.fromkeys(found)), [not hasattr(var, "val") and var in known for var in program.outvars]


def _is_program(part: Any) -> bool:
    return hasattr(part, "eqns") or hasattr(getattr(part, "jaxpr", None), "eqns")


def _better(label: str, name: str) -> str:
    """Prefer the outermost function's name that says something."""
    return name or ("" if label.startswith(("<", "_")) else label)


def _alive(program: Any) -> set[Any]:
    """Collect the variables through which a derivative flows to the outputs."""
    alive = {var for var in program.outvars if not hasattr(var, "val")}
    logarithms: set[Any] = set()
    for equation in reversed(program.eqns):
        outputs = set(equation.outvars)
        if not alive & outputs or equation.primitive.name == "stop_gradient":
            continue
        if equation.primitive.name == "abs" and outputs <= logarithms:
            alive -= outputs  # log|z| has a pole where |z| has its kink
            alive |= {var for var in equation.invars if not hasattr(var, "val")}
            continue
        new = {var for var in equation.invars if not hasattr(var, "val")}
        if equation.primitive.name == "log":
            logarithms |= new - alive
        alive |= new
    return alive
