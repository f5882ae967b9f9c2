"""What a run asks of its flow beside velocities; functions and optimisers have nothing to say."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx

from ..problem import AbstractProblem
from ..trees import PyTree
from ._driver import Explanation


def prepared(flow: Any, problem: AbstractProblem, params: PyTree) -> Any:
    """Give the flow for a run that starts at `params`."""
    prepare = getattr(flow, "prepare", None)
    return flow if prepare is None else prepare(problem, params)


def own_conditions(flow: Any, problem: AbstractProblem) -> Mapping[str, Callable[..., Any]]:
    """Give the flow's own stop conditions."""
    conditions = getattr(flow, "conditions", None)
    return {} if conditions is None else conditions(problem)


def gradients_of(flow: Any) -> int:
    """Count the gradients of one evaluation: what the flow says, or one."""
    return int(getattr(flow, "gradient_evaluations", 1))


def explanation(flow: Any, problem: AbstractProblem, params: PyTree) -> Explanation | None:
    """Let the flow say why a run from `params` ended, unless it reached its end."""
    explain = getattr(flow, "explain", None)
    if explain is None:
        return None
    constant = eqx.filter(params, eqx.is_inexact_array, inverse=True)

    def told(state: PyTree, time: float, code: str) -> tuple[str, str]:
        if code in ("completed", "max_steps", "wall_seconds"):
            return code, ""
        return explain(problem, params, eqx.combine(state, constant), time, code)

    return told
