"""From a point of a study to a problem and initial parameters."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import datasets, networks
from ..errors import ParameterError, StudyFileError
from ..losses import CrossEntropy, SquaredError
from ..problem import Problem
from ..trees import PyTree
from ._schema import Bundled, Clusters, Convnet, Csv, DeepLinear, Diabetes, Mlp, Npz, Point, Teacher, Waves


@dataclass(frozen=True)
class Built:
    """A problem with initial parameters; `labels`: the samples' classes, `None` in regression."""

    problem: Problem
    params: PyTree
    labels: np.ndarray | None


def build(point: Point, mesh: Any = None) -> Built:
    """Make the problem of a point, and the initial parameters of its seed, in its precision (x64 must be on for both).

    **Raises:** what the data's reader and `Problem` raise; `StudyFileError` where data and network do not fit.
    """
    inputs, targets, labels = data_of(point)
    real = jnp.dtype(point.precision)
    if point.loss == "squared_error":
        targets = datasets.one_hot(targets) if labels is not None else np.asarray(targets, float)
        targets = (targets[:, None] if targets.ndim == 1 else targets).astype(real)
        loss, n_outputs = SquaredError(), targets.shape[1]
    else:
        n_outputs = int(targets.max()) + 1
        loss = CrossEntropy(n_classes=n_outputs)
    apply, params = _network(point, inputs.shape[1:], n_outputs)
    params = jax.tree.map(lambda leaf: leaf.astype(real) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf, params)
    budget = int(point.budget.memory_gib * 2**30)
    sharding = {} if mesh is None else {"mesh": mesh}
    problem = Problem(apply, inputs.astype(real), targets, loss=loss, memory_budget=budget, **sharding)
    problem.check(params)
    return Built(problem, params, labels)


def data_of(point: Point) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Read inputs and targets, and the labels where targets are classes.

    **Raises:** what the data's reader raises; `StudyFileError` if the loss wants classes and there are none.
    """
    inputs, targets = _data(point)
    labels = targets if targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer) else None
    if point.loss == "cross_entropy" and labels is None:
        raise StudyFileError(
            'loss = "cross_entropy"', "targets that are classes", 'take "squared_error", or `data.classes = true`'
        )
    return inputs, targets, labels


def _data(point: Point) -> tuple[np.ndarray, np.ndarray]:
    data = point.data
    match data:
        case Bundled(source="digits"):
            images = isinstance(point.network, Convnet)
            found = datasets.digits(data.samples, images=images, standardize=data.standardize)
        case Bundled() | Diabetes():
            found = getattr(datasets, data.source)(data.samples, standardize=data.standardize)
        case Clusters():
            found = datasets.gaussian_clusters(data.classes, data.per_class, data.dimension, spread=data.spread)
        case Waves():
            found = datasets.fourier_target(data.samples, data.frequencies, dim=data.dimension)
        case Teacher():
            apply, params = networks.mlp(data.widths, "tanh", key=jax.random.key(2**31))
            shape = (data.samples, data.widths[0])
            found = datasets.teacher_student(apply, params, shape, noise=data.noise)
        case Csv():
            _unchanged(data)
            found = datasets.load_csv(data.path, data.target, inputs=data.inputs, classes=data.classes)
        case Npz():
            _unchanged(data)
            found = datasets.load_npz(data.path, data.inputs, data.targets)
    inputs, targets = np.asarray(found.inputs, float), np.asarray(found.targets)
    if isinstance(data, Csv | Npz) and data.standardize:
        spread = inputs.std(axis=0)
        inputs = (inputs - inputs.mean(axis=0)) / np.where(spread > 0, spread, 1)
    if getattr(data, "centre", False):
        inputs = inputs - inputs.mean(axis=0)
    return inputs, targets


def _unchanged(data: Csv | Npz) -> None:
    """Raise if a file is not what it was when the study was read."""
    with Path(data.path).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != data.sha256:
        raise ParameterError(
            f"{str(data.path)!r} has changed since the study was begun",
            "the data that the points name by its hash",
            "restore the file, or `fibration run` the study again: it makes new points",
        )


def _network(point: Point, shape: tuple[int, ...], n_outputs: int) -> tuple[Any, PyTree]:
    network, key = point.network, jax.random.key(point.seed)
    match network:
        case Mlp():
            sizes = (int(np.prod(shape)), *network.hidden, n_outputs)
            return networks.mlp(sizes, network.activation, key=key, bias=network.bias, scale=network.scale)
        case DeepLinear():
            widths = (int(np.prod(shape)), *network.hidden, n_outputs)
            return networks.deep_linear(widths, key=key, scale=network.scale, balanced=network.balanced)
        case Convnet():
            return networks.convnet(
                shape,
                n_outputs,
                network.activation,
                key=key,
                channels=network.channels,
                dense=network.dense,
                kernel=network.kernel,
                pooling=network.pooling,
                scale=network.scale,
            )
