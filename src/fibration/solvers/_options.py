"""Options that a user seldom touches, and the progress that a run reports."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..errors import StepSizeError, UnknownNameError


@dataclass(frozen=True)
class Options:
    """Limits and habits of a run; every field has a sensible default.

    - `max_steps`: steps tried before the run ends with the result "max_steps".
    - `save`: "all" saved times keep their parameters, or the "last" only (costs and observations are kept for all).
    - `memory_budget`: bytes that the saved parameters may take; more raises `MemoryBudgetError` before the run.
    - `buffer_bytes`: bytes of saved parameters held on the device between two visits of the driver.
    - `chunk_seconds`: about how long compiled code runs between two visits of the driver, which is how often progress
      is reported, checkpoints are due, and Ctrl-C is heard.
    """

    max_steps: int = 10_000_000
    save: Literal["all", "last"] = "all"
    memory_budget: int = 4 * 2**30
    buffer_bytes: int = 64 * 2**20
    chunk_seconds: float = 0.3

    def __post_init__(self) -> None:
        for name in ("max_steps", "memory_budget", "buffer_bytes", "chunk_seconds"):
            if not getattr(self, name) > 0:
                raise StepSizeError(f"{name} = {getattr(self, name)}", "a positive number", "leave it at its default")
        if self.save not in ("all", "last"):
            raise UnknownNameError(f"save = {self.save!r}", '"all" or "last"', 'use `save="last"` to save memory')


@dataclass(frozen=True)
class Progress:
    """Where a run stands: what a `progress=` callback is given, about three times a second and at the end.

    `fraction`: from 0 to 1 of the time span; `time`; `steps` accepted; `gradient_evaluations`; `cost`: the last one
    saved, or `None`; `seconds`: wall time so far; `finished`: true once, in the last call.
    """

    fraction: float
    time: float
    steps: int
    gradient_evaluations: int
    cost: float | None
    seconds: float
    finished: bool


ProgressCallback = Callable[[Progress], None]
