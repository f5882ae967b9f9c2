"""The page of one of Elkabetz and Cohen's experiments."""

from collections.abc import Sequence

from ..plots._numbers import listed, number
from ..study import ElkabetzCohenStudy, machine_facts
from ._elkabetz_cohen_plots import TITLES, elkabetz_cohen_plots
from ._page import Page, Table

# Read off the paper's plots (MNIST): the distance travelled in 10,000 steps, and the largest between two step sizes
# then, to about 0.02.
PAPER = {"linear": (2.62, 0.02), "relu": (2.98, 0.05), "conv": (2.87, 0.06), "conv-pool": (2.55, 0.05)}


def elkabetz_cohen_page(study: ElkabetzCohenStudy) -> Page:
    """Make the page of an experiment: what was found, five plots, and tables beside the paper's numbers.

    ```python
    >>> import jax
    >>> import fibration as fb
    >>> with jax.enable_x64(True):
    ...     study = fb.study.elkabetz_cohen("linear", samples=10, steps=4, ratios=(2,), n_stamps=2)
    >>> [table.title for table in fb.report.elkabetz_cohen_page(study).tables]
    ['Beside the paper, at the end', 'Runs', 'What was run', 'Machine and versions']

    ```
    """
    return Page(
        f"{TITLES[study.model]}: how far is gradient descent from gradient flow?",
        tuple(elkabetz_cohen_sentences(study)),
        tuple(elkabetz_cohen_plots(study)),
        (
            elkabetz_cohen_table([study]),
            _runs(study),
            Table("What was run", (), tuple((name, str(value)) for name, value in study.facts.items())),
            Table("Machine and versions", (), tuple((name, str(value)) for name, value in machine_facts().items())),
        ),
    )


def elkabetz_cohen_sentences(study: ElkabetzCohenStudy) -> list[str]:
    """Tell in four sentences what an experiment found: between step sizes, from the flow, the curvature, the price.

    ```python
    >>> import jax
    >>> import fibration as fb
    >>> with jax.enable_x64(True):
    ...     study = fb.study.elkabetz_cohen("linear", samples=10, steps=4, ratios=(2,), n_stamps=2)
    >>> print(fb.report.elkabetz_cohen_sentences(study)[0])
    In 4 steps of η₀ = 0.001 gradient descent travelled 0.0..., and with steps 2 times smaller it ended at most
    ... away, ... % of it (the paper's plots, on MNIST: 2.62, and at most about 0.02 away).

    ```
    """
    return [_between(study), _flow(study), _curvature(study), _price(study)]


def elkabetz_cohen_table(studies: Sequence[ElkabetzCohenStudy]) -> Table:
    """Make a table of experiments beside the numbers that can be read off the paper's plots.

    ```python
    >>> import jax
    >>> import fibration as fb
    >>> with jax.enable_x64(True):
    ...     study = fb.study.elkabetz_cohen("linear", samples=10, steps=4, ratios=(2,), n_stamps=2)
    >>> fb.report.elkabetz_cohen_table([study]).rows[0][:3]
    ('Fully connected, linear', '2.62', '≤ 0.02 (0.8 %)')

    ```
    """
    columns = (
        "network",
        "paper: travelled",
        "paper: between step sizes",
        "travelled",
        "between step sizes",
        "from the flow",
        "Richardson",
        "error of the flow",
    )
    rows: list[tuple[str, ...]] = []
    for study in studies:
        far = study.travelled[1, -1]

        def share(value: float, far: float = far) -> str:
            return f"{number(value, 2)} ({number(100 * value / far, 2)} %)" if far > 0 else number(value, 2)

        travelled, between = PAPER[study.model]
        estimates = [number(value, 2) for value in study.richardson()[:, -1]]
        rows.append(
            (
                TITLES[study.model],
                f"{travelled}",
                f"≤ {between} ({number(100 * between / travelled, 1)} %)",
                number(far),
                f"≤ {share(study.between[:, -1].max())}",
                share(study.from_flow[0, -1]),
                ", ".join(estimates),
                number(study.flow_error[-1], 2),
            )
        )
    return Table("Beside the paper, at the end", columns, tuple(rows))


def _between(study: ElkabetzCohenStudy) -> str:
    far, apart = study.travelled[1, -1], study.between[:, -1].max()
    paper = PAPER[study.model]
    ratios = listed([str(ratio) for ratio in study.ratios])
    share = f", {number(100 * apart / far, 2)} % of it" if far > 0 else ""
    return (
        f"In {study.steps:,} steps of η₀ = {number(study.step_size)} gradient descent travelled {number(far)}, and "
        f"with steps {ratios} times smaller it ended at most {number(apart, 2)} away{share} (the paper's plots, on "
        f"MNIST: {paper[0]}, and at most about {paper[1]} away)."
    )


def _flow(study: ElkabetzCohenStudy) -> str:
    measured, error = study.from_flow[0, -1], study.flow_error[-1]
    estimates = [number(value) for value in study.richardson()[:, -1]]
    text = f"The gradient flow itself is {number(measured)} away from descent at η₀"
    if error > 0.01 * measured:
        text += f", to within about {number(error, 2)}, the error of the solved flow"
    text += f"; the pairs of descents predict {listed(estimates)} (Richardson)"
    if study.first_order():
        return f"{text}, which agree with one another, as they do where descent is of first order."
    return f"{text}, which differ by more than 5 %: the gradient has jumps or the steps are too large for first order."


def _curvature(study: ElkabetzCohenStudy) -> str:
    highest = study.sharpness.max()
    return (
        f"The sharpness starts at {number(study.sharpness[1, 0])}, ends at {number(study.sharpness[1, -1])} and is at "
        f"most {number(highest)}, which is {number(100 * highest * study.step_size / 2, 2)} % of 2/η₀, where descent "
        "would turn unstable."
    )


def _price(study: ElkabetzCohenStudy) -> str:
    flow, last = int(study.gradient_evaluations[0]), int(study.gradient_evaluations[-1])
    return (
        f"Solving the flow and estimating the error took {flow:,} gradients ({study.flow_method}); descent at "
        f"η₀/{study.ratios[-1]} took {last:,}, and all descents {int(study.gradient_evaluations[1:].sum()):,}."
    )


def _runs(study: ElkabetzCohenStudy) -> Table:
    names = ["gradient flow", "η₀", *(f"η₀/{ratio}" for ratio in study.ratios)]
    columns = ("run", "gradients", "seconds", "final loss", "travelled", "from the flow", "from η₀")
    from_flow = ["–", *(number(value) for value in study.from_flow[:, -1])]
    from_base = [number(study.from_flow[0, -1]), "–", *(number(value) for value in study.between[:, -1])]
    rows = [
        (
            name,
            f"{int(study.gradient_evaluations[row]):,}",
            number(study.wall_seconds[row]),
            number(study.costs[row, -1]),
            number(study.travelled[row, -1]),
            from_flow[row],
            from_base[row],
        )
        for row, name in enumerate(names)
    ]
    return Table("Runs", columns, tuple(rows))
