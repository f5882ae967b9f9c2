"""Sweeps over a dask cluster: one single-threaded process for each worker, and a store that outlives them all."""

import contextlib
import itertools
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from ..errors import ClusterError, MissingExtraError
from ._store import Store

# What keeps a worker's numerics to the one core it has; set before JAX and LAPACK start in it.
SINGLE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NPROC": "1",  # XLA's pool of threads
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PLATFORMS": "cpu",
}
ONE_THREAD_FLAG = "--xla_cpu_multi_thread_eigen=false"


def on_cluster(
    store: Store,
    study: str,
    todo: list[tuple[str, Mapping[str, Any]]],
    retry: bool,
    cluster: str,
    workers: int | None,
) -> Iterator[tuple[str, str]]:
    """Run points on a cluster; yield each run with what became of it, in the order in which they end."""
    kept = {record.id for record in store.records(study=study, status="done")}
    yield from ((run, "kept") for run, _ in todo if run in kept)
    rest = [(run, point) for run, point in todo if run not in kept]
    if not rest:
        return
    distributed = _distributed()
    path = str(store.path.resolve())
    with _client(distributed, cluster, workers, len(rest)) as client:
        try:
            futures = {
                client.submit(_task, path, dict(point), study, retry, key=f"{run}-{study}", pure=False): run
                for run, point in _spread(rest, len(client.scheduler_info(n_workers=-1)["workers"]))
            }
            for future in distributed.as_completed(list(futures)):
                yield futures[future], _outcome(future, client)
                future.release()
        except (OSError, TimeoutError, distributed.comm.core.CommClosedError) as error:
            raise _lost(cluster, error) from error


def _spread(todo: list[Any], workers: int) -> list[Any]:
    """Order points so that each worker begins at a place of its own.

    Neighbours in a sweep mostly have the same shapes: so what one worker compiles, the others need not at that time.
    """
    share = -(-len(todo) // max(workers, 1))
    shares = [todo[start : start + share] for start in range(0, len(todo), share)]
    return [one for row in itertools.zip_longest(*shares) for one in row if one is not None]


def _task(path: str, point: dict[str, Any], study: str, retry: bool) -> str:
    """Run one point, in a worker."""
    from ._runner import run_one

    return run_one(Store(path), point, study, retry=retry)


def _outcome(future: Any, client: Any) -> str:
    if future.status == "finished":
        return str(future.result())
    if future.status in ("cancelled", "lost"):
        raise _lost(str(getattr(client.scheduler, "address", "cluster")), None)
    error = future.exception()
    if type(error).__name__ == "KilledWorker":
        return "lost"
    raise error


def _lost(cluster: str, error: BaseException | None) -> ClusterError:
    detail = "" if error is None else f": {error}"
    return ClusterError(
        f"the cluster {cluster!r} is gone{detail}",
        "a scheduler that lives as long as the sweep",
        "what was done is in the store: `fibration resume` goes on with the rest",
    )


@contextlib.contextmanager
def _client(distributed: Any, cluster: str, workers: int | None, most: int) -> Generator[Any]:
    """Connect to a scheduler, or start one with its workers on this machine."""
    if cluster == "local":
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            sys.exit(1)  # a worker that runs its parent's script again; the parent says what to do
        count = min(workers or len(os.sched_getaffinity(0)), most)
        with tempfile.TemporaryDirectory(prefix="fibration-compiled-") as compiled:
            try:
                local = distributed.LocalCluster(
                    n_workers=count,
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address="127.0.0.1:0",  # its own, whatever else runs on this machine
                    env=SINGLE_THREAD
                    | {
                        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {ONE_THREAD_FLAG}".strip(),
                        "JAX_COMPILATION_CACHE_DIR": compiled,  # what one compiled the others load
                    },
                    silence_logs="CRITICAL",
                )
            except RuntimeError as error:
                raise ClusterError(
                    f"no worker could be started: {error}",
                    "a script whose workers can import it without running it again",
                    'in a script call `run_study` under `if __name__ == "__main__":`',
                ) from error
            with local, distributed.Client(local) as client:
                yield client
        return
    try:
        client = distributed.Client(cluster, timeout="10s")
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"no scheduler answers at {cluster!r}: {error}",
            'a running dask scheduler, "tcp://host:port", or "local"',
            "start one with `dask scheduler` and `dask worker`, or through dask-jobqueue or dask-kubernetes",
        ) from error
    with client:
        yield client


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise MissingExtraError(
            f"{error.name} cannot be imported", "the extra `scale`", "pip install 'fibration[scale]'"
        ) from error
    return distributed
