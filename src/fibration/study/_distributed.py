"""Several processes, on one host or many, as one JAX."""

import os

import jax

from ..errors import ParameterError

_OURS = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_NEEDED = f"{_OURS[0]} (host:port), {_OURS[1]} and {_OURS[2]} in every process, or a launcher that JAX knows"
_FIX = (
    "start the processes by `srun`, `mpirun` or a Kubernetes job, or set the three variables for each of them; one "
    "process alone needs none of this"
)


def initialize_distributed() -> tuple[int, int]:
    """Join the other processes of this job by `jax.distributed.initialize`, from the environment.

    Read are `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`; what they
    leave out, JAX finds by itself under SLURM, Open MPI, Kubernetes and on Cloud TPUs. Call it before anything is
    computed: afterwards `jax.devices()` are those of all processes, for the `mesh=` of an `fb.Problem`. A second call
    does nothing.

    **Returns:** the number of this process, from 0, and how many there are.

    **Raises:** `ParameterError` where the environment names no coordinator, where a variable is no number, where
    something was computed before, and where the others could not be reached.
    """
    if not jax.distributed.is_initialized():
        _join(_number(_OURS[1]), _number(_OURS[2]))
    return jax.process_index(), jax.process_count()


def _join(count: int | None, number: int | None) -> None:
    address = os.environ.get(_OURS[0])
    if address is not None and not address.rpartition(":")[2].isdigit():
        raise ParameterError(f"{_OURS[0]} is {address!r}", "host:port of process 0", "add a port that is free there")
    given = [name for name in _OURS if name in os.environ]
    seen = f"the environment sets {', '.join(given)}" if given else f"the environment sets none of {', '.join(_OURS)}"
    try:
        jax.distributed.initialize(num_processes=count, process_id=number)
    except (ValueError, TypeError) as error:  # what JAX raises where something is missing
        said = str(error).rstrip(".")
        raise ParameterError(f"{seen}, and JAX says: {said}", _NEEDED, _FIX) from error
    except RuntimeError as error:
        late = "before any JAX" in str(error)
        raise ParameterError(
            f"the processes could not be joined: {str(error).rstrip('.')}",
            "a call before anything is computed" if late else "a coordinator, process 0, that the others can reach",
            "call it first of all" if late else "check that all processes run, and the address and port",
        ) from error


def _number(name: str) -> int | None:
    value = os.environ.get(name)
    try:
        return None if value is None else int(value)
    except ValueError as error:
        raise ParameterError(f"{name} is {value!r}", "a whole number", "set it, from 0 for process 0") from error
