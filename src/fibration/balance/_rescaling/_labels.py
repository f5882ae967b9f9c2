"""Classes of numbers that are rescaled alike."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

GROUND = 0  # the class of what is not rescaled
ANY = 1  # of zeros, infinities and NaN, which may be rescaled by anything

Classes = np.ndarray  # of int32


class Labels:
    """A partition of labels into classes that only grow, a union–find structure on arrays.

    Every label points at the smallest of its class, so that looking up is one indexing. Merging costs as much as there
    are labels, and happens a few times per layer.
    """

    def __init__(self) -> None:
        self._parent: Classes = np.array([GROUND, ANY], np.int32)
        self.groups: Classes = np.array([0, 0], np.int32)
        self._why: Classes = np.array([-1, -1], np.int32)
        self._reasons: list[str] = []
        self._group = 0

    def new(self, shape: int | Sequence[int]) -> Classes:
        """Make labels of classes of their own, all of one new group: units that are not connected to one another."""
        count = int(np.prod(shape))
        self._group += 1
        first = len(self._parent)
        labels = np.arange(first, first + count, dtype=np.int32)
        self._parent = np.concatenate([self._parent, labels])
        self.groups = np.concatenate([self.groups, np.full(count, self._group, np.int32)])
        self._why = np.concatenate([self._why, np.full(count, -1, np.int32)])
        return labels.reshape(shape)

    def find(self, labels: Any) -> Classes:
        """Look up the classes of labels."""
        return np.asarray(self._parent[labels])

    def unify(self, first: Any, second: Any, why: str) -> Classes:
        """Merge the classes of two arrays of labels, entry by entry; `why`, if that takes a class to the ground."""
        first, second = np.broadcast_arrays(self.find(first), self.find(second))
        apart = (first != second) & (first != ANY) & (second != ANY)
        if apart.any():
            self._merge(first[apart], second[apart], why)
        return self.find(np.where(first == ANY, second, first))

    def ground(self, labels: Any, why: str) -> None:
        """Say that the classes of labels are not rescaled, and why."""
        self.unify(labels, GROUND, why)

    def reason(self, labels: Any) -> str:
        """Say why labels came to the ground: the commonest reason; empty if they have not, or began there."""
        codes = self._why[np.asarray(labels).ravel()]
        codes = codes[codes >= 0]
        return self._reasons[np.bincount(codes).argmax()] if len(codes) else ""

    def _merge(self, first: Classes, second: Classes, why: str) -> None:
        pairs = np.unique(np.stack([first, second]), axis=1)
        count = len(self._parent)
        graph = coo_array((np.ones(pairs.shape[1], np.int8), (pairs[0], pairs[1])), shape=(count, count))
        n_components, component = connected_components(graph, directed=False)
        smallest = np.full(n_components, count, np.int32)
        np.minimum.at(smallest, component, np.arange(count, dtype=np.int32))
        before, self._parent = self._parent, smallest[component][self._parent]
        landed = (self._parent == GROUND) & (before != GROUND)
        if landed.any():
            if why not in self._reasons:
                self._reasons.append(why)
            self._why[landed] = self._reasons.index(why)
