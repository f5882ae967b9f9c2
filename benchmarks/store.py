"""The run store: what one run costs, and how fast ten thousand are listed.

    python benchmarks/store.py [--parts run listing] [--out benchmarks/results/store.json]

- run: one run from `claim` to `finish`, with one dataset of six variables of 60 numbers, beside the same dataset
  through `Dataset.to_zarr`, and with each part alone. Medians and the slowest, in milliseconds. `STORE_BENCHMARK` names
  the directory, and so the disk, in which this is done.
- listing: 10,000 runs with a point of twelve entries, a summary of six numbers and two curves of 60 points. Seconds to
  list them all by the first process and again, those of one study, with all points, with all curves, without the index
  (`read_only`), and to rebuild the index; bytes on disk. The runs' manifests are written without bringing each to the
  disk, and they have no results: a run's results are as large as its arrays.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import xarray as xr

import runner
from fibration.study import _files
from fibration.study._store import Store

N_RUNS = 10_000


def dataset(seed, n=60):
    rng = np.random.default_rng(seed)
    return xr.Dataset({f"v{i}": ("time", rng.random(n)) for i in range(6)}, coords={"time": np.arange(n) * 0.5})


def point(number):
    names = ("optimiser", "loss", "data", "activation", "precision", "method")
    settings = {name: f"{name} {number % 7}" for name in names}
    axes = {"width": 2 ** (number % 8), "step_size": 0.1 / (1 + number // 8)}
    return settings | axes | {"seed": number, "t1": 10.0, "depth": 3, "axes": axes}


def ending(number):
    x = np.linspace(0, 10, 60)
    curves = {
        name: {"x": x, "y": np.exp(-x * rate) * (1 + number)} for name, rate in (("cost", 1.0), ("sharpness", 0.3))
    }
    return {f"number {i}": number / (i + 3) for i in range(6)}, curves


def milliseconds(call, repeats):
    taken = []
    for number in range(repeats):
        began = time.perf_counter()
        call(number)
        taken.append(1e3 * (time.perf_counter() - began))
    return {"median": round(float(np.median(taken)), 2), "slowest": round(max(taken), 2)}


def part_run():
    with tempfile.TemporaryDirectory(dir=os.environ.get("STORE_BENCHMARK", None)) as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr's, about its consolidated metadata
        store = Store(Path(place) / "store", create=True)

        def whole(number):
            with store.claim(point(number)) as run:
                run.write("descent", dataset(number))
                run.finish(*ending(number))

        def claim(number):
            with store.claim(point(2 * N_RUNS + number)) as run:
                opened.append(run.id)

        opened = []
        whole(N_RUNS)  # the first call imports, and looks at the machine
        parts = {"claim to finish": milliseconds(whole, 100), "claim and leave": milliseconds(claim, 100)}
        with store.claim(point(N_RUNS + 1)) as run:
            parts["write"] = milliseconds(lambda number: run.write(f"d{number}", dataset(number)), 100)
            parts["write again"] = milliseconds(lambda number: run.write("d0", dataset(number)), 30)
            parts["read"] = milliseconds(lambda number: run.read(f"d{number}"), 30)
        plain = Path(place) / "plain"
        parts["to_zarr"] = milliseconds(lambda number: dataset(number).to_zarr(plain / f"{number}.zarr"), 30)
        store.close()
        return parts


def part_listing():
    with tempfile.TemporaryDirectory(dir=os.environ.get("STORE_BENCHMARK", None)) as place:
        store = Store(Path(place) / "store", create=True)
        study = store.add_study("", {"name": "many"}, [point(number) for number in range(N_RUNS)])
        flush, _files.os.fsync = os.fsync, lambda _: None  # ten thousand times two would take minutes
        try:
            for number in range(N_RUNS):
                with store.claim(point(number), study=study.id) as run:
                    run.finish(*ending(number))
        finally:
            _files.os.fsync = flush
        seconds = {}

        def timed(name, call):
            began = time.perf_counter()
            result = call()
            seconds[name] = round(time.perf_counter() - began, 3)
            return result

        store.close()
        fresh = json.loads(subprocess.check_output([sys.executable, __file__, "--list", str(store.path)], text=True))
        seconds["list, another process"] = fresh
        records = timed("list", store.records)
        assert len(records) == N_RUNS
        assert [record.point["seed"] for record in timed("list again", store.records)] == list(range(N_RUNS))
        timed("list one study", lambda: store.records(study="many", status="done"))
        timed("every point of a list", lambda: [record.point for record in records])
        timed("every curve of a list", lambda: [record.curves for record in records])
        timed("one record", lambda: store.record(records[5].id))
        assert timed("rebuild the index", store.rebuild_index) == N_RUNS
        store.close()
        sizes = {"index": (store.path / "index.sqlite").stat().st_size}
        sizes["manifests"] = sum(path.stat().st_size for path in store.path.glob("runs/*/manifest.json"))
        blocks = sum(path.lstat().st_blocks * 512 for path in store.path.rglob("*"))
        sizes["on disk"] = blocks
        (store.path / "index.sqlite").unlink()
        with Store(store.path, read_only=True) as reader:
            assert len(timed("list without the index", reader.records)) == N_RUNS
        return {"seconds": seconds, "bytes": sizes}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--list"]:
        with Store(sys.argv[2]) as opened:
            start = time.perf_counter()
            opened.records()
            print(round(time.perf_counter() - start, 3))
    else:
        runner.run(__doc__, {"run": part_run, "listing": part_listing}, print, "benchmarks/results/store.json")
