"""Draw docs/images/minimizers-*.png: what layers do to samples, noise by layer, the configurations, and a spectrum.

python tools/minimizers_figures.py [--out docs/images]
"""

import argparse
import itertools
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import numpy as np  # noqa: E402

import fibration as fb  # noqa: E402
from fibration.minimizers._film import film_strip  # noqa: E402
from fibration.minimizers._plots import cost_ladder, degenerate_directions, noise_plot  # noqa: E402


def clustered(q, spread, seed):
    """Draw the clusters of spec 002, section 4.3, and the shift of its table, 1.6 of the largest radius."""
    rng = np.random.default_rng(seed)
    means = np.eye(q) + 0.15 * rng.normal(size=(q, q))
    labels = np.repeat(np.arange(q), 25 + 3 * np.arange(q))
    inputs = (means[:, labels] + spread * rng.normal(size=(q, len(labels)))).T
    radius = max(
        float(np.linalg.norm(inputs[labels == j] - inputs[labels == j].mean(axis=0), axis=1).max()) for j in range(q)
    )
    return inputs, labels, 1.6 * radius


def save(plots, size, path):
    """Save one figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fb.plots.to_matplotlib(plots, size=size).savefig(path, dpi=110, metadata={"Software": None})


def main():
    """Draw the four figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    arguments = parser.parse_args()
    inputs, labels, _ = clustered(3, 0.06, 1)
    found = fb.minimizers.construct(inputs, labels, opening=2.1)
    save(film_strip(found, inputs, labels), (13.0, 3.6), arguments.out / "minimizers-film.png")
    save(noise_plot(found, inputs, labels), (5.2, 3.4), arguments.out / "minimizers-noise.png")
    inputs, labels, shift = clustered(3, 0.03, 1)
    configurations = [
        fb.minimizers.configuration(inputs, labels, flags, shift=shift)
        for flags in itertools.product((True, False), repeat=3)
    ]
    save(cost_ladder(configurations), (6.0, 3.8), arguments.out / "minimizers-ladder.png")
    ends = [degenerate_directions(configurations[place]) for place in (0, -1)]
    save(ends, (10.0, 3.8), arguments.out / "minimizers-spectrum.png")


if __name__ == "__main__":
    main()
