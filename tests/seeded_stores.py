"""Runs whose results follow from their seeds, computed here or by other processes, and the check of their stores."""

import inspect
import json
import subprocess
import sys

import numpy as np
import xarray as xr

from fibration.study._store import Store


def point(number):
    return {"seed": number, "axes": {"seed": number}}


def dataset(seed):
    return xr.Dataset({"cost": ("time", np.random.default_rng(seed).normal(size=50))})


def compute(store, number):
    with store.claim(point(number)) as run:
        if run.status == "running":
            for name in ("flow", "descent"):
                if not run.finished(name):
                    run.write(name, dataset(number))
            run.finish({"seed": number}, {"cost": {"x": [0, 1], "y": [1, number]}})
        return run.status


# What the scripts of other processes begin with.
COMMON = """
import json, os, sys, time
import numpy as np
import xarray as xr
from fibration.errors import RunBusyError, StoreError
from fibration.study._store import Store
""" + "".join(map(inspect.getsource, (point, dataset, compute)))


def start(script, *arguments):
    command = [sys.executable, "-W", "ignore", "-c", COMMON + script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(process):
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def check_whole(path, least=0):
    """Every run is as good as its status says, the index tells what the manifests tell, and nothing else lies about."""
    with Store(path) as store:
        records = store.records()
        for record in records:
            assert record.status in ("done", "interrupted", "failed"), record.error
            assert [text for text in store.verify(record) if "but not finished" not in text] == []
            for name in record.results:
                xr.testing.assert_identical(record.open(name).load(), dataset(record.seed))
            if record.status == "done":
                assert record.summary == {"seed": record.seed}
                assert record.results == ("descent", "flow")
        assert sum(record.status == "done" for record in records) >= least
    for suffix in ("", "-wal", "-shm"):
        (path / f"index.sqlite{suffix}").unlink(missing_ok=True)
    with Store(path, read_only=True) as reader:
        assert reader.records() == records
    return records


def leftovers(path):
    return [str(one) for one in path.rglob(".*")]
