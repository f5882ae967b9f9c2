"""Canonical space, a gallery: the numbers of its specification made again, and the figures of docs/canonical.md.

    python benchmarks/canonical_gallery.py [--parts spiral …] [--figures training …] [--quick] [--out FILE]

Every row has our number, the specification's, and whether they agree in kind. The specification does not say its data
and seeds, so that fractions are compared within three standard deviations, sizes by their order, and inequalities by
whether they hold; the test of each part stands in its docstring. Shallow networks of one input on the unit interval,
N = 8 equidistant samples of sin 9x, where nothing else is said. `--quick` is a smoke run, under a minute: a few parts,
or those that are named, with tiny sizes, whose numbers mean nothing; it writes only where `--out` or `--images` say.
"""

import argparse
import json
import time
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import canonical_gallery_bias as bias
import canonical_gallery_rank as rank
import canonical_gallery_training as training
from canonical_gallery_data import shown
from canonical_gallery_figures import FIGURES
from runner import machine

ROOT = Path(__file__).parents[1]
RESULTS, IMAGES = ROOT / "benchmarks" / "results" / "canonical_gallery.json", ROOT / "docs" / "images"
PARTS = training.PARTS | rank.PARTS | bias.PARTS
# What compiles fast.
QUICK = ("contraction", "claim C5", "saturation", "ReLU law", "exact arithmetic"), ("singularity",)


def compare(name, quick):
    """Run a part and print its table."""
    began = time.process_time()
    rows = PARTS[name](quick)
    seconds = time.process_time() - began
    print(f"\n{name}: {sum(row['agrees'] for row in rows)} of {len(rows)} agree, {seconds:.0f} s of processors\n")
    print("| what | ours | specification | |\n|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['what']} | {shown(row['ours'])} | {shown(row['spec'])} | {'' if row['agrees'] else 'differs'} |",
            flush=True,
        )
    return {"processor seconds": round(seconds, 1), "rows": rows}


def draw(name, quick, images):
    """Draw a figure; save it if there is a folder for it."""
    figure = FIGURES[name](quick)
    if images:
        images.mkdir(parents=True, exist_ok=True)
        figure.savefig(images / f"canonical-{name}.png", dpi=110, metadata={"Software": None})
    print(f"figure {name}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="*", choices=PARTS)
    parser.add_argument("--figures", nargs="*", choices=FIGURES)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--images", type=Path)
    arguments = parser.parse_args()
    out = arguments.out or (None if arguments.quick else RESULTS)
    images = arguments.images or (None if arguments.quick else IMAGES)
    done = json.loads(out.read_text()) if out and out.exists() else {}
    parts, figures = QUICK if arguments.quick else (PARTS, FIGURES)
    for name in parts if arguments.parts is None else arguments.parts:
        done[name] = compare(name, arguments.quick)
        if out:
            out.write_text(json.dumps(done | {"machine": machine()}, indent=1, allow_nan=False) + "\n")
    for name in figures if arguments.figures is None else arguments.figures:
        draw(name, arguments.quick, images)


if __name__ == "__main__":
    main()
