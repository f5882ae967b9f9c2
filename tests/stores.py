"""A run store of one test, small runs to put into it, and what it takes for them to come back the same."""

import dataclasses
import math

import numpy as np
import pytest
import xarray as xr

from fibration.study._store import Store


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True) as opened:
        yield opened


def point(number=0, **more):
    return {"seed": number, "width": 8, "axes": {"width": 8, "seed": number}, **more}


def curve(n=5):
    return {"cost": {"x": np.arange(n), "y": np.linspace(1, 0, n)}}


def dataset(seed=0):
    rng = np.random.default_rng(seed)
    values = {name: ("time", rng.normal(size=7)) for name in ("cost", "sharpness")}
    return xr.Dataset(values, coords={"time": np.arange(7) * 0.5}, attrs={"steps": 6})


def finish(store, number=0, summary=None):
    with store.claim(point(number)) as run:
        run.write("flow", dataset(number))
        run.finish({"cost": 0.5} if summary is None else summary, curve(), gradients=60)
    return run.id


def known(record):
    """Everything that a record tells."""
    fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if not f.name.startswith("_")}
    return fields | {name: getattr(record, name) for name in ("point", "curves", "versions", "machine", "directory")}


def same(a, b):
    """Equality with NaN equal to itself, and without 1 == 1.0 == True or 0.0 == -0.0."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    return type(a) is type(b) and a == b
