"""Labelled samples of known geometry, for the tests of minimisers written down."""

import numpy as np


def clusters(rng, q, dimension, *, noise, samples=12, least=2):
    """Clusters about random affinely independent means, whose noise to signal is about `noise`."""
    while True:
        means = rng.normal(size=(q, dimension))
        away = means - means.mean(axis=0)
        sizes = np.linalg.svd(away, compute_uv=False)[: q - 1]
        if sizes[-1] > 0.3 * sizes[0]:
            break
    labels = np.repeat(np.arange(q), rng.integers(least, samples + 1, q))
    directions = rng.normal(size=(len(labels), dimension))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    radius = 0.7 * noise * sizes[-1] * rng.uniform(0.5, 1, (len(labels), 1))
    return means[labels] + radius * directions, labels


def slabs(rng, q, dimension, *, samples=30, gap=0.2):
    """Classes that are wide slabs one behind another along a random direction: separable one by one, never tight."""
    direction = rng.normal(size=dimension)
    direction /= np.linalg.norm(direction)
    labels = np.repeat(np.arange(q), samples)
    across = 5 * rng.normal(size=(len(labels), dimension))
    across -= np.outer(across @ direction, direction)
    along = labels * (1 + gap) + rng.uniform(size=len(labels))
    return across + np.outer(along, direction), labels
