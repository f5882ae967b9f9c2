import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fibration.datasets as datasets
from fibration.datasets import Dataset, one_hot
from fibration.errors import EmptyDataError, ShapeError, UnknownNameError


def test_importing_the_package_imports_no_reader_and_no_sklearn():
    # A bare parent package, since the real one may import other rooms, and with them pandas.
    code = f"""
import sys, types
sys.path[:0] = {[path for path in sys.path if path]!r}
parent = sys.modules["fibration"] = types.ModuleType("fibration")
parent.__path__ = [{str(Path(datasets.__file__).parents[1])!r}]
import fibration.datasets
assert fibration.datasets.digits
print(sorted({{"sklearn", "pandas", "pyarrow", "scipy", "jax"}} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_all_is_sorted_and_every_name_is_documented():
    assert datasets.__all__ == sorted(datasets.__all__)
    for name in datasets.__all__:
        documentation = getattr(datasets, name).__doc__
        assert documentation, name
        assert ">>>" in documentation, name


def test_dataset_unpacks():
    inputs, targets = Dataset(np.zeros((2, 1)), np.array([3, 4]))
    assert inputs.shape == (2, 1)
    assert targets.tolist() == [3, 4]


def test_one_hot_counts_the_classes():
    encoded = one_hot(np.array([2, 0, 2], np.uint8))
    assert encoded.dtype == np.float64
    assert encoded.tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 1]]
    assert one_hot([0], 4).shape == (1, 4)


@pytest.mark.parametrize(
    ("labels", "count", "error"),
    [
        ([[0], [1]], None, ShapeError),
        ([], None, EmptyDataError),
        ([0.0, 1.0], None, UnknownNameError),
        ([-1, 0], None, UnknownNameError),
        ([0, 3], 3, UnknownNameError),
    ],
)
def test_one_hot_refuses(labels, count, error):
    with pytest.raises(error):
        one_hot(labels, count)
