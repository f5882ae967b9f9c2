"""Runs a traced program with an evaluation of its operations that the caller chooses."""

from collections.abc import Callable, Sequence
from typing import Any

from jax.extend.core import Literal

# Loops and branches are operations like others; these programs are entered.
_KEPT = ("scan", "while", "cond")


def run(
    jaxpr: Any,
    consts: Sequence[Any],
    arguments: Sequence[Any],
    evaluate: Callable[[Any, list[Any]], Sequence[Any]],
    constant: Callable[[Any], Any] = lambda value: value,
) -> list[Any]:
    """Evaluate a program, entering the ones it calls.

    `evaluate(equation, operands)` lists the results of one operation; `constant` turns the program's constants into
    what it works with.
    """
    inputs = [*map(constant, consts), *arguments]
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], inputs, strict=True))

    def read(atom: Any) -> Any:
        return constant(atom.val) if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if inner is None or equation.primitive.name in _KEPT:
            results = evaluate(equation, operands)
        else:
            body, constants = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, [])
            results = run(body, constants, operands, evaluate, constant)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]
