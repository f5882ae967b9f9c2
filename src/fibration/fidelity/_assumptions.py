"""What a guarantee rests on, and how each part of it is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["theorem", "conditional", "estimate"]
Status = Literal["proven", "given", "sampled"]


@dataclass(frozen=True)
class Assumption:
    """One quantity that a guarantee rests on.

    `quantity`: its name; `value`; `status`: "proven" (computed so that it holds up to rounding), "given" (by the
    caller) or "sampled" (measured at some points, with a margin, and not proven between them); `note`: how it was
    found.

    ```python
    >>> import fibration as fb
    >>> print(fb.fidelity.Assumption("Lipschitz constant of the Hessian", 5.2, "sampled", "at 11 points, doubled"))
    Lipschitz constant of the Hessian: 5.2 (sampled: at 11 points, doubled)

    ```
    """

    quantity: str
    value: float
    status: Status
    note: str

    def __str__(self) -> str:
        return f"{self.quantity}: {self.value:.4g} ({self.status}: {self.note})"


def kind_of(assumptions: Sequence[Assumption]) -> Kind:
    """Name the guarantee that these assumptions allow: a theorem unless one of them is only sampled."""
    return "conditional" if any(a.status == "sampled" for a in assumptions) else "theorem"
