"""Pictures of balanced weights: imbalance, norms, condition numbers and the change of the function, pair by pair."""

import numpy as np

from ..plots import Line, Plot, Series
from ..plots._numbers import number
from ._report import WeightsReport, rounding

_FEW = 12  # pairs, up to which every one has its tick


def weights_plots(report: WeightsReport) -> list[Plot]:
    """Describe a report by four plots, each with the pairs along its axis in the order of the layers.

    **Returns:** imbalance before and after; norms of the two sides; condition numbers; and the change of the function
    beside the rounding of the types in the file.

    ```python
    >>> import tempfile, numpy as np
    >>> import fibration as fb
    >>> folder = tempfile.mkdtemp()
    >>> pair = {"q.lora_A.weight": np.array([[0.1, 0.0]]), "q.lora_B.weight": np.array([[8.0], [6.0]])}
    >>> path = fb.weights.write(folder + "/adapter.safetensors", pair)
    >>> plots = fb.weights.weights_plots(fb.weights.balance_weights(path, folder + "/balanced.safetensors"))
    >>> plots[1].title, plots[1].series[1].y.tolist()
    ('Norms of the two sides', [10.0])

    ```
    """
    pairs = report.pairs
    imbalances = np.array([pair.imbalance for pair in pairs])
    norms = np.array([pair.norms for pair in pairs])  # pair, before or after, side
    conditions = np.array([pair.conditions for pair in pairs])
    levels = tuple(
        Line(f"rounding of {dtype}, {number(rounding(dtype))}", rounding(dtype), 2 + place)
        for place, dtype in enumerate(sorted({pair.dtype for pair in pairs}))
    )
    after = "after" if report.strength == 1 else f"after, at strength {report.strength:g}"
    changes = np.array([pair.change for pair in pairs])
    seen = np.array([*changes[changes > 0], *(level.value for level in levels)])
    return [
        _plot(
            report,
            "Imbalance before and after",
            "How far the two sides of each pair are from balance, relative to their squared norms. A pair that is "
            "balanced exactly has no lower circle.",
            "imbalance",
            [("before", imbalances[:, 0], 4, False), (after, imbalances[:, 1], 1, False)],
            levels,
        ),
        _plot(
            report,
            "Norms of the two sides",
            "The Frobenius norms of the left side (B, W_Q, W_O or down) and the right side (A, W_K, W_V or up)"
            + ("; after balancing the two agree." if report.strength == 1 else "."),
            "norm",
            [
                ("left after", norms[:, 1, 0], 6, True),
                ("left before", norms[:, 0, 0], 4, False),
                ("right before", norms[:, 0, 1], 3, False),
                ("right after", norms[:, 1, 1], 1, False),
            ],
        ),
        _plot(
            report,
            "Condition numbers",
            "The largest singular value of each side over its smallest that counts; for gated units, of the norms of "
            "the units that live. Where only a torus acts, the two sides need not agree after balancing.",
            "condition number",
            [
                ("left after", conditions[:, 1, 0], 6, True),
                ("left before", conditions[:, 0, 0], 4, False),
                ("right before", conditions[:, 0, 1], 3, False),
                ("right after", conditions[:, 1, 1], 1, False),
            ],
        ),
        _plot(
            report,
            "Change of the function",
            "The relative change of each product, measured on the numbers as they were written, beside half a unit in "
            "the last place of their type.",
            "relative change",
            [("change of the product", changes, 1, False)],
            levels,
            (float(seen.min()) / 4, float(seen.max()) * 4),
        ),
    ]


def _plot(
    report: WeightsReport,
    title: str,
    caption: str,
    label: str,
    values: list[tuple[str, np.ndarray, int, bool]],
    levels: tuple[Line, ...] = (),
    y_range: tuple[float, float] | None = None,
) -> Plot:
    count = len(report.pairs)
    few = count <= _FEW
    places = np.arange(count, dtype=float) + (0 if few else 1)
    return Plot(
        title,
        caption,
        "pair, in the order of the layers",
        label,
        tuple(Series(name, places, array, colour, "none", "circle", wide) for name, array, colour, wide in values),
        levels,
        y_log=True,
        y_range=y_range,
        x_names=tuple(str(place + 1) for place in range(count)) if few else (),
    )
