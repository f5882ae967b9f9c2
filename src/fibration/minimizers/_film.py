"""A film strip: what every layer of a construction does to the samples."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ..errors import ShapeError
from ..plots import Plot, Series
from ..plots._plot import Dash
from ._cone import Cone
from ._minimizer import Minimizer
from ._statistics import as_classes

EDGES, OPPOSITE, BASE = "cone of the next layer", "opposite cone", "base point"
TOLERANCE = 1e-9


def film_strip(minimizer: Minimizer, inputs: Any, labels: Any, *, most: int = 200) -> tuple[Plot, ...]:
    """Describe the samples before the first layer and after each, and the cone of the layer to come.

    In the coordinates of the construction, in which layers are truncations: as they are in 2 dimensions; with 3 classes
    in the plane of the class means; with more in the plane of the two leading principal axes of the class means, or,
    where none leads (as in barycentric coordinates), in a plane in which they are the corners of a regular polygon.

    The edges are those of the section of {z : W(z − p) ≥ 0} through the base point p along the picture's plane, and of
    the opposite cone; a layer that moves none of the samples shown has none. In 2 dimensions the edges are at ±θ/2 to
    the axis; in more the section holds that of the round cone.

    **Arguments:** `minimizer`: as `construct` returns it; `inputs` (N, …) and `labels` (N,): the samples to show, not
    necessarily those of the construction; `most`: of each class, evenly picked.

    **Returns:** depth + 1 plots of one scale, for `fb.plots.to_matplotlib` to draw side by side.

    **Raises:** `ShapeError` for a construction in one dimension, and the errors of `construct` about samples.

    ```python
    >>> import fibration as fb
    >>> inputs, labels = fb.datasets.gaussian_clusters(3, 20, 4, spread=0.03)
    >>> film = fb.minimizers.film_strip(fb.minimizers.construct(inputs, labels), inputs, labels)
    >>> [plot.title for plot in film]
    ['Samples', 'Layer 1: class 0 is a point', 'Layer 2: class 1 is a point', 'Layer 3: class 2 is a point']

    ```
    """
    classes = as_classes(inputs, labels, "class")
    z = minimizer.truncated(classes.inputs, 0)
    if z.shape[1] < 2:
        raise ShapeError(
            "a construction in one dimension, as that of a single class is",
            "coordinates of two dimensions or more",
            "show another construction",
        )
    plane = _plane(z, classes.numbers, len(classes.names))
    kept = np.concatenate([_evenly(np.flatnonzero(classes.numbers == j), most) for j in range(len(classes.names))])
    z, numbers = z[kept], classes.numbers[kept]
    frames, moving = [z @ plane.T], list[bool]()
    for step in minimizer.steps:
        after = step.cone.truncate(z)
        moving.append(not np.array_equal(after, z))
        z = after
        frames.append(z @ plane.T)
    everything = np.concatenate(frames)
    low, high = everything.min(axis=0), everything.max(axis=0)
    pad = 0.12 * max(float(np.max(high - low)), np.finfo(float).tiny)
    box = np.stack([low - pad, high + pad])
    titles = ["Samples"]
    for place, step in enumerate(minimizer.steps, 1):
        gone = "" if step.label is None else f": class {minimizer.classes[step.label]} is a point"
        titles.append(f"Layer {place}{gone}")
    caption = "Each layer leaves alone what is inside its cone (solid), and takes the opposite one (dashed) to a point."
    names = ("z₁", "z₂") if z.shape[1] == 2 else ("first axis in the plane of the means", "second axis")
    plots: list[Plot] = []
    for place, (title, points) in enumerate(zip(titles, frames, strict=True)):
        series = [_cloud(f"class {name}", points[numbers == j], j + 1) for j, name in enumerate(classes.names)]
        if place < len(moving) and moving[place]:
            series += _cone_series(minimizer.steps[place].cone, plane, box)
        x_range, y_range = ((float(box[0, k]), float(box[1, k])) for k in (0, 1))
        plots.append(
            Plot(title, caption, *names, tuple(series), x_range=x_range, y_range=y_range, equal=True),
        )
    return tuple(plots)


def _cloud(name: str, points: Float[np.ndarray, "N 2"], colour: int) -> Series:
    together = bool(np.all(np.ptp(points, axis=0) < TOLERANCE * (1 + np.abs(points).max())))
    return Series(name, points[:, 0], points[:, 1], colour, "none", "circle", wide=together)


def _evenly(rows: Int[np.ndarray, " N"], most: int) -> Int[np.ndarray, " n"]:
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(int)]


def _plane(z: Float[np.ndarray, "N n"], numbers: Int[np.ndarray, " N"], q: int) -> Float[np.ndarray, "2 n"]:
    """Choose two orthonormal directions to look at."""
    if z.shape[1] == 2:
        return np.eye(2)
    means = np.stack([z[numbers == j].mean(axis=0) for j in range(q)])
    away = means - means.mean(axis=0)
    _, sizes, axes = np.linalg.svd(away, full_matrices=True)
    if len(sizes) < 2 or sizes[1] <= TOLERANCE * sizes[0]:
        # The means lie on a line: beside it, the direction in which the samples vary most.
        rest = z - z.mean(axis=0)
        rest -= np.outer(rest @ axes[0], axes[0])
        return np.stack([axes[0], np.linalg.eigh(rest.T @ rest)[1][:, -1]])
    if q == 3 or sizes[q - 2] > sizes[0] * (1 - 1e-6):
        turns = np.pi / 2 + 2 * np.pi * np.arange(q) / q
        basis, triangle = np.linalg.qr(away.T @ np.stack([np.cos(turns), np.sin(turns)], axis=1))
        return (basis * np.sign(np.diag(triangle))).T
    return axes[:2]


def _edges(cone: Cone, plane: Float[np.ndarray, "2 n"]) -> Float[np.ndarray, "E 2"]:
    """Find the edges of {a : W(a₁v₁ + a₂v₂) ≥ 0}, v the plane's directions: none if that is the origin alone."""
    walls = cone.weight @ plane.T
    along = np.stack([-walls[:, 1], walls[:, 0]], axis=1)
    along = along[np.linalg.norm(along, axis=1) > 1e-12]
    candidates = np.concatenate([along, -along])
    candidates /= np.linalg.norm(candidates, axis=1, keepdims=True)
    inside = candidates[np.all(candidates @ walls.T >= -TOLERANCE, axis=1)]
    if len(inside) < 2:
        return np.zeros((0, 2))
    # Walls may share an edge: the two directions that are farthest apart.
    first, second = np.unravel_index(np.argmin(inside @ inside.T), (len(inside),) * 2)
    return inside[[first, second]]


def _cone_series(cone: Cone, plane: Float[np.ndarray, "2 n"], box: Float[np.ndarray, "2 2"]) -> list[Series]:
    base, edges = plane @ cone.base_point, _edges(cone, plane)
    series: list[Series] = []
    sides: tuple[tuple[str, Dash, np.ndarray], ...] = ((EDGES, "solid", edges), (OPPOSITE, "dashed", -edges))
    for name, dash, directions in sides:
        rays = [ray for ray in (_clip(base, direction, box) for direction in directions) if ray is not None]
        if rays:
            # A gap keeps the two rays apart.
            points = np.concatenate([np.concatenate([ray, np.full((1, 2), np.nan)]) for ray in rays])
            series.append(Series(name, points[:, 0], points[:, 1], 0, dash))
    if np.all(base >= box[0]) and np.all(base <= box[1]):
        series.append(Series(BASE, base[:1], base[1:], 0, "none", "circle", wide=True))
    return series


def _clip(
    start: Float[np.ndarray, "2"], direction: Float[np.ndarray, "2"], box: Float[np.ndarray, "2 2"]
) -> Float[np.ndarray, "2 2"] | None:
    """Cut the ray start + t·direction, t ≥ 0, to a box; `None` if it misses it."""
    first, last = 0.0, np.inf
    for k in (0, 1):
        if abs(direction[k]) < 1e-15:
            if not box[0, k] <= start[k] <= box[1, k]:
                return None
            continue
        times = np.sort((box[:, k] - start[k]) / direction[k])
        first, last = max(first, float(times[0])), min(last, float(times[1]))
    return None if first >= last else start + np.array([[first], [last]]) * direction
