"""The shortest parameters among all rescalings: a convex function of log c, a Laplacian for its Hessian."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.linalg
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import breadth_first_order
from scipy.sparse.linalg import LinearOperator, cg

from ._action import Rescaling

_ENTRIES = 20_000_000  # of a matrix that is factorised, 160 MB
_SUFFICIENT = 1e-4  # of the decrease that the slope promises (Armijo)
_HALVINGS = 60
_ROUNDING = 1e-13  # of an imbalance
_WARM = 3  # sweeps before Newton's method, which bring scales that are orders of magnitude apart together


@dataclass(frozen=True, eq=False)
class Edges:
    """What connects units, with node 0 for inputs, outputs and the source of biases: |w|² of weights, summed over taps.

    |W(s)|² = Σ_e a_e exp(2(k_e s_to − l_e s_from)), with s = log c (n + 1,) and s_0 = 0.
    """

    to: np.ndarray
    start: np.ndarray
    to_degree: np.ndarray
    start_degree: np.ndarray
    squares: np.ndarray
    n_units: int

    def at(self, s: np.ndarray) -> np.ndarray:
        """Compute the terms of |W(s)|²."""
        with np.errstate(over="ignore", invalid="ignore"):
            if self.uniform:  # exponentials of few units, rather than of many edges
                return self.squares * np.exp(2 * s)[self.to] * np.exp(-2 * s)[self.start]
            return self.squares * np.exp(2 * (self.to_degree * s[self.to] - self.start_degree * s[self.start]))

    @cached_property
    def uniform(self) -> bool:
        """Tell whether all degrees are 1."""
        return bool(np.all(self.to_degree == 1) and np.all(self.start_degree == 1))

    @cached_property
    def between(self) -> np.ndarray:
        """The edges between two units, neither of them node 0."""
        return np.flatnonzero((self.to > 0) & (self.start > 0))

    @cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows and columns of those edges in the Laplacian, below its diagonal."""
        to, start = self.to[self.between] - 1, self.start[self.between] - 1
        return np.maximum(to, start).astype(np.int64), np.minimum(to, start)

    @cached_property
    def width(self) -> int:
        """How far below the diagonal of the Laplacian there are numbers: little in deep networks."""
        rows, columns = self.places
        return int(np.max(rows - columns, initial=0))

    def sums(self, terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sum terms over what comes into each node, and over what goes out, times degrees."""
        length = self.n_units + 1
        if self.uniform:
            return np.bincount(self.to, terms, length), np.bincount(self.start, terms, length)
        return (
            np.bincount(self.to, self.to_degree * terms, length),
            np.bincount(self.start, self.start_degree * terms, length),
        )

    def taken(self, keep: np.ndarray) -> "Edges":
        """Keep some edges."""
        arrays = (self.to, self.start, self.to_degree, self.start_degree, self.squares)
        to, start, to_degree, start_degree, squares = (array[keep] for array in arrays)
        return Edges(to, start, to_degree, start_degree, squares, self.n_units)


def edges(action: Rescaling, arrays: list[Any]) -> Edges:
    """Collect |w|² of all parameters that a rescaling moves; arrays in float64."""
    parts: list[list[np.ndarray]] = [[], [], [], [], []]
    for leaf, w in zip(action.leaves, arrays, strict=True):
        if leaf is None:
            continue
        tables = (leaf.gain, leaf.loss, leaf.gain_degree, leaf.loss_degree)
        shape = np.broadcast_shapes(*(table.shape for table in tables))
        axes = tuple(axis for axis, size in enumerate(shape) if size == 1)
        squares = np.sum(np.abs(w) ** 2, axis=axes, keepdims=True)
        for part, table in zip(parts, (*tables, squares), strict=True):
            part.append(np.broadcast_to(table, squares.shape).ravel())
    if not parts[0]:
        parts = [[np.zeros(0, np.int32)], [np.zeros(0, np.int32)], *([np.zeros(0)] for _ in range(3))]
    to, start, to_degree, start_degree, squares = (np.concatenate(part) for part in parts)
    return Edges(to, start, to_degree, start_degree, squares, action.n_units)


def alive(found: Edges) -> np.ndarray:
    """Tell which units lie on a path of nonzero weights from inputs or biases to outputs."""
    n, there = found.n_units, found.squares > 0
    # Node 0 is split: signals start at 0 and end at n + 1.
    to = np.where(found.to == 0, n + 1, found.to)[there]
    graph = csr_array((np.ones(to.size, np.int8), (found.start[there], to)), shape=(n + 2, n + 2))
    alive = np.ones(n + 2, bool)
    for matrix, root in ((graph, 0), (csr_array(graph.T), n + 1)):
        reached = np.zeros(n + 2, bool)
        reached[breadth_first_order(matrix, root, return_predecessors=False)] = True
        alive &= reached | (np.arange(n + 2) == 0)
    return alive[1 : n + 1]


@dataclass(frozen=True, eq=False)
class _Layer:
    members: np.ndarray  # (n + 1,)
    edges: Edges
    tied: bool  # whether some of its units feed one another


def layers(found: Edges, groups: np.ndarray) -> list[_Layer]:
    """Sort edges by the groups of units that they touch."""
    moved = (found.to != found.start) | (found.to_degree != found.start_degree)
    parts: list[_Layer] = []
    for group in np.unique(groups):
        members = np.concatenate([[False], groups == group])
        inside = members[found.to] & members[found.start] & moved
        tied = bool(np.any(inside & (found.to != found.start)))
        parts.append(_Layer(members, found.taken((members[found.to] | members[found.start]) & moved), tied))
    return parts


def sweep(parts: list[_Layer], s: np.ndarray) -> np.ndarray:
    """Go once through the layers, and give every unit its own shortest scale: c² = |out|/|in|, all else as it is.

    With weights of degree l going out it is c^{2(1 + l)} = l |out|²/|in|². Units of one group that feed one another
    move half as far, which shortens the parameters too (derived, from the inequality of the means).
    """
    s = s.copy()
    for layer in parts:
        terms = layer.edges.at(s)
        into, out = layer.edges.sums(terms)
        move = layer.members & (into > 0) & (out > 0)
        into, out = into[move], out[move]
        curved_in = np.bincount(layer.edges.to, layer.edges.to_degree**2 * terms, len(s))[move]
        curved_out = np.bincount(layer.edges.start, layer.edges.start_degree**2 * terms, len(s))[move]
        s[move] += np.log(out / into) / (2 * (curved_in / into + curved_out / out)) * (0.5 if layer.tied else 1)
    return s


@dataclass(frozen=True, eq=False)
class Shortest:
    """Log factors s (n + 1,), the largest imbalance |μ_k|/(|in_k|² + |out_k|²), and how it came to be."""

    s: np.ndarray
    imbalance: float
    iterations: int
    converged: bool


def moments(found: Edges, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute μ_k and |in_k|² + |out_k|², times degrees, of every unit."""
    into, out = (sums[1:] for sums in found.sums(found.at(s)))
    return into - out, into + out


def _worst(mu: np.ndarray, total: np.ndarray) -> float:
    return float(np.max(np.abs(mu) / np.where(total > 0, total, 1), initial=0.0))


def cyclic(found: Edges, groups: np.ndarray, tolerance: float, max_iterations: int) -> Shortest:
    """Sweep through the layers until every unit is balanced: linear convergence, without a system of equations."""
    parts, s, iteration = layers(found, groups), np.zeros(found.n_units + 1), 0
    while (worst := _worst(*moments(found, s))) > tolerance and iteration < max_iterations:
        s, iteration = sweep(parts, s), iteration + 1
    return Shortest(s, worst, iteration, worst <= tolerance)


def newton(found: Edges, groups: np.ndarray, tolerance: float, max_iterations: int, strength: float = 1.0) -> Shortest:
    """Minimise ½|W(s)|² − (1 − strength) ⟨μ(0), s⟩ by Newton's method: where μ(s) = (1 − strength) μ(0).

    The gradient of the first term is μ, its Hessian twice a Laplacian, grounded at node 0. Quadratic convergence; where
    nothing is to remain a few sweeps come first. The Laplacian is factorised, without every second layer, if that takes
    no more than 160 MB; otherwise its equations are solved by conjugate gradients. Converges once every unit is as
    wanted to the tolerance, or to rounding.
    """
    s = np.zeros(found.n_units + 1)
    wanted = (1 - strength) * moments(found, s)[0]
    if strength == 1:
        parts = layers(found, groups)
        for _ in range(_WARM):
            s = sweep(parts, s)
    worst, iteration, terms, split = np.inf, 0, found.at(s), _Split(found, groups)
    while True:
        into, out = (sums[1:] for sums in found.sums(terms))
        mu = into - out - wanted
        before, worst = worst, _worst(mu, into + out)
        # Sums of many terms round: an imbalance that stays below this is as good as none.
        stalled = worst < _ROUNDING and worst >= before / 2
        if worst <= tolerance or stalled or iteration == max_iterations:
            return Shortest(s, worst, iteration, worst <= tolerance or stalled)
        step = np.concatenate([[0.0], -_solve(found, split, terms, mu, into + out) / 2])
        slope, here, size = float(mu @ step[1:]), float(terms.sum()) / 2 - float(wanted @ s[1:]), 1.0
        slack = 8 * np.finfo(float).eps * (abs(here) + float(terms.sum()))
        there = s
        for _ in range(_HALVINGS):
            there = s + size * step
            terms = found.at(there)
            if terms.sum() / 2 - wanted @ there[1:] <= here + _SUFFICIENT * size * slope + slack:
                break
            size /= 2
        s, iteration = there, iteration + 1


def _solve(found: Edges, split: "_Split", terms: np.ndarray, mu: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Solve Lap x = μ, with Lap = Σ_e (k e_to − l e_from)(k e_to − l e_from)ᵀ a_e, without node 0."""
    n = found.n_units
    if found.uniform:
        weights, diagonal = terms[found.between], total
    else:
        weights = (found.to_degree * found.start_degree * terms)[found.between]
        diagonal = np.bincount(found.to, found.to_degree**2 * terms, n + 1)[1:]
        diagonal = diagonal + np.bincount(found.start, found.start_degree**2 * terms, n + 1)[1:]
    root = np.sqrt(np.where(diagonal > 0, diagonal, 1))  # what nothing moves stands still
    rows, columns = found.places
    scaled = weights / root[rows] / root[columns]
    try:
        if found.width < n // 4 and (found.width + 1) * n <= _ENTRIES:
            band = -_summed_at((rows - columns) * n + columns, scaled, (found.width + 1, n))
            band[0] = 1 + 2 * band[0]
            return scipy.linalg.solveh_banded(band, mu / root, overwrite_ab=True, lower=True) / root
        if len(split.rest) ** 2 <= _ENTRIES and len(split.rest) * len(split.apart) <= _ENTRIES:
            return split.solve(scaled, mu / root) / root
    except np.linalg.LinAlgError:  # a unit hangs on the others by less than rounding: conjugate gradients
        pass
    across = csr_array(coo_array((scaled, (rows, columns)), shape=(n, n)))
    operator: Any = LinearOperator((n, n), lambda v: v - across @ v - across.T @ v)
    return cg(operator, mu / root, rtol=1e-12, maxiter=2000)[0] / root


class _Split:
    """Units in two parts, of which one has no edges of its own, such as every second layer: it is eliminated.

    For I − [[0, B], [Bᵀ, R + Rᵀ]] the rest is solved for with I − R − Rᵀ − BᵀB.
    """

    def __init__(self, found: Edges, groups: np.ndarray) -> None:
        _, group = np.unique(groups, return_inverse=True)
        sizes = np.bincount(group)
        rows, columns = found.places
        touching = np.zeros((len(sizes), len(sizes)), bool)
        touching[group[rows], group[columns]] = True
        touching |= touching.T
        chosen: list[int] = []
        for one in np.argsort(-sizes, kind="stable"):
            if not touching[one, [*chosen, one]].any():
                chosen.append(int(one))
        apart = np.isin(group, chosen)
        self.apart, self.rest = np.flatnonzero(apart), np.flatnonzero(~apart)
        place = np.zeros(found.n_units, np.int64)
        place[self.apart], place[self.rest] = np.arange(len(self.apart)), np.arange(len(self.rest))
        across = apart[rows] | apart[columns]
        self._across: Any = slice(None) if across.all() else np.flatnonzero(across)
        self._within: Any = np.flatnonzero(~across)
        first, second = rows[self._across], columns[self._across]
        swapped = apart[second]
        first, second = np.where(swapped, second, first), np.where(swapped, first, second)
        self._across_cells = place[first] * len(self.rest) + place[second]
        self._within_cells = place[rows[self._within]] * len(self.rest) + place[columns[self._within]]

    @cached_property
    def _block(self) -> Any:
        """Room for B, used again and again."""
        return np.zeros((len(self.apart), len(self.rest)))

    @cached_property
    def _single(self) -> bool:
        """Tell whether no two edges fall into one place of B."""
        return bool(np.bincount(self._across_cells, minlength=1).max() <= 1)

    def solve(self, weights: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Solve for a vector of all units, by a factorisation of the rest."""
        n_rest, B = len(self.rest), self._block
        cells = B.reshape(-1)
        if self._single:
            cells[self._across_cells] = weights[self._across]
        else:
            cells[:] = np.bincount(self._across_cells, weights[self._across], len(cells))
        matrix = -(B.T @ B)
        if len(self._within):
            R = _summed_at(self._within_cells, weights[self._within], (n_rest, n_rest))
            matrix -= R + R.T
        matrix[np.arange(n_rest), np.arange(n_rest)] += 1
        solution = np.empty_like(right)
        first, second = right[self.apart], right[self.rest]
        # With NumPy throughout: its threads and SciPy's would wait for one another.
        solution[self.rest] = np.linalg.solve(matrix, second + B.T @ first)
        solution[self.apart] = first + B @ solution[self.rest]
        return solution


def _summed_at(cells: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> Any:
    return np.bincount(cells, values, shape[0] * shape[1]).astype(float, copy=False).reshape(shape)
