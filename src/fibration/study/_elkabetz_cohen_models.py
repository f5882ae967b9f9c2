"""The data and the four networks of Elkabetz and Cohen's experiments."""

import math
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from .. import datasets, networks
from ..errors import MissingFileError, ShapeError, StepSizeError, UnknownNameError
from ..losses import CrossEntropy
from ..problem import Problem
from ..trees import PyTree

Model = Literal["linear", "relu", "conv", "conv-pool"]
MODELS: tuple[str, ...] = get_args(Model)
N_CLASSES = 10
HIDDEN = (50, 50)
# What the authors normalise MNIST by: mean and standard deviation of the training set's pixels.
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
MNIST_SPACING = 50
FOLDERS = ("", "raw", "MNIST/raw")
STEMS = {
    "images": ("train-images-idx3-ubyte", "train-images.idx3-ubyte"),
    "labels": ("train-labels-idx1-ubyte", "train-labels.idx1-ubyte"),
}


def setting(
    model: str, mnist: str | PathLike[str] | None, samples: int, seed: int
) -> tuple[Problem, PyTree, dict[str, Any]]:
    """Build the problem, its initial parameters, and facts about both.

    **Raises:** `UnknownNameError` for another model, `MissingFileError` without MNIST's files, and what the readers
    raise.
    """
    if model not in MODELS:
        raise UnknownNameError(f"model is {model!r}", f"one of {', '.join(MODELS)}", "choose one of them")
    if samples < 1:
        raise StepSizeError(f"samples = {samples}", "at least one image", "leave it at 1000")
    images, labels, data = _digits(samples) if mnist is None else _mnist(Path(mnist), samples)
    side = images.shape[1]
    key = jax.random.key(seed)
    if model in ("linear", "relu"):
        images = images.reshape(len(images), -1)
        sizes = (side**2, *HIDDEN, N_CLASSES)
        apply, params = networks.mlp(sizes, model, key=key, bias=False)
        name = f"{'-'.join(map(str, sizes))}, {'linear' if model == 'linear' else 'ReLU'}, no biases"
    else:
        # The paper pads 28 × 28 by 2 on each side and convolves with 5 × 5 kernels; 8 × 8 leaves room for 3 × 3 only.
        large = side >= 28
        if large:
            images = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
        pooled = model == "conv-pool"
        kernel = 5 if large else 3
        apply, params = networks.convnet(
            images.shape[1:],
            N_CLASSES,
            "relu",
            key=key,
            kernel=kernel,
            pooling="max" if pooled else "stride",
            padding="valid" if large else "same",
            bias=pooled,
        )
        name = f"two convolutions, {kernel} × {kernel}, of 6 and 16 channels, ReLU, "
        name += "max pooling 2 × 2, " if pooled else "stride 2, "
        widths = [layer["weight"].shape[1] for layer in params["dense"]]
        name += f"then dense {'-'.join(map(str, [*widths, N_CLASSES]))}, {'with' if pooled else 'no'} biases"
    problem = Problem(apply, images, labels, loss=CrossEntropy(n_classes=N_CLASSES))
    params = draw(key, params)
    weights = "Xavier uniform"
    if model.startswith("conv"):
        others = "convolutions and biases" if model == "conv-pool" else "convolutions"
        weights = f"dense: Xavier uniform; {others}: uniform within 1/√(number of inputs)"
    facts = {
        "model": model,
        "data": data,
        "network": name,
        "initial parameters": weights,
        "loss": "cross-entropy, full batch",
        "parameters": problem.n_parameters(params),
        "images": len(images),
        "seed": seed,
        "dtype": str(jax.tree.leaves(params)[0].dtype),
    }
    return problem, params, facts


def draw(key: PRNGKeyArray, params: PyTree) -> PyTree:
    """Draw parameters as the authors' PyTorch code does, for layers shaped like those of `params`.

    Dense weights uniform within √(6/(inputs + outputs)), Glorot and Bengio's law; convolutions, and all biases,
    uniform within 1/√inputs, PyTorch's default.
    """

    def layer(key: PRNGKeyArray, old: dict[str, Array]) -> dict[str, Array]:
        shape = old["weight"].shape
        dense = len(shape) == 2
        n_in = shape[1] if dense else math.prod(shape[:-1])
        bound = math.sqrt(6 / sum(shape)) if dense else 1 / math.sqrt(n_in)
        keys = jax.random.split(key)
        new = {"weight": jax.random.uniform(keys[0], shape, minval=-bound, maxval=bound)}
        if "bias" in old:
            limit = 1 / math.sqrt(n_in)
            new["bias"] = jax.random.uniform(keys[1], old["bias"].shape, minval=-limit, maxval=limit)
        return new

    def is_layer(node: Any) -> bool:
        return isinstance(node, dict) and "weight" in node

    layers, structure = jax.tree.flatten(params, is_leaf=is_layer)
    drawn = [layer(one, old) for one, old in zip(jax.random.split(key, len(layers)), layers, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def _digits(samples: int) -> tuple[np.ndarray, np.ndarray, str]:
    every, _ = datasets.digits(images=True)
    images, labels = datasets.digits(min(samples, len(every)), images=True)
    # Normalised as MNIST is: by one mean and one deviation, of all pixels of all images.
    data = f"scikit-learn's digits in place of MNIST: {len(images)} images of 8 × 8, normalised"
    return (images - every.mean()) / every.std(), labels, data


def _mnist(folder: Path, samples: int) -> tuple[np.ndarray, np.ndarray, str]:
    pixels = datasets.read_idx(_find(folder, "images"))
    labels = datasets.read_idx(_find(folder, "labels"))
    if pixels.ndim != 3 or pixels.shape[1:] != (28, 28) or labels.shape != pixels.shape[:1]:
        raise ShapeError(
            f"images of shape {pixels.shape} and labels of shape {labels.shape}",
            "MNIST's training set: (N, 28, 28) and (N,)",
            "check the directory's files",
        )
    spacing = max(1, min(MNIST_SPACING, len(pixels) // samples))
    chosen = slice(0, spacing * samples, spacing)
    images = (pixels[chosen, :, :, None] / 255 - MNIST_MEAN) / MNIST_STD
    data = f"MNIST: {len(images)} images of 28 × 28, every {spacing}th of the training set, normalised"
    return images, labels[chosen].astype(np.int64), data


def _find(folder: Path, kind: str) -> Path:
    names = [f"{stem}{end}" for stem in STEMS[kind] for end in ("", ".gz")]
    for place in FOLDERS:
        for name in names:
            if (folder / place / name).is_file():
                return folder / place / name
    raise MissingFileError(
        f"{str(folder)!r} holds no {names[0]} or {names[1]}",
        "the directory of MNIST's training images and labels, gzipped or not",
        "pass the directory that holds both files, or leave it out to use the bundled digits",
    )
