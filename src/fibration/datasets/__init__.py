"""Data to train on: scikit-learn's small sets, synthetic ones with known answers, and readers for your own files.

Everything returns a `Dataset`, a pair of NumPy arrays, so that `inputs, targets = digits()` unpacks. The readers
execute nothing that a file holds and check every size a file claims before they allocate it.
"""

from fibration.datasets._binary import load_cifar, load_mnist, read_idx
from fibration.datasets._bundled import breast_cancer, diabetes, digits, iris, wine
from fibration.datasets._csv import load_csv
from fibration.datasets._dataset import Dataset, one_hot
from fibration.datasets._npz import load_npz
from fibration.datasets._parquet import load_parquet
from fibration.datasets._synthetic import (
    fourier_target,
    gaussian_clusters,
    high_frequency,
    low_frequency,
    teacher_student,
)

__all__ = [
    "Dataset",
    "breast_cancer",
    "diabetes",
    "digits",
    "fourier_target",
    "gaussian_clusters",
    "high_frequency",
    "iris",
    "load_cifar",
    "load_csv",
    "load_mnist",
    "load_npz",
    "load_parquet",
    "low_frequency",
    "one_hot",
    "read_idx",
    "teacher_student",
    "wine",
]
