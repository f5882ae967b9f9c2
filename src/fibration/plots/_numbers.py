"""Numbers as people write them."""

import math
from collections.abc import Sequence
from typing import SupportsFloat

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: SupportsFloat, digits: int = 3) -> str:
    """Write a number with a few significant digits: 0.0321, 46,800, 2.6 × 10⁻⁵.

    ```python
    >>> number(0.0320512), number(46800), number(2.6e-5), number(1500.0), number(0.0)
    ('0.0321', '46,800', '2.6 × 10⁻⁵', '1,500', '0')

    ```
    """
    value = float(value)
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "not a number")
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    if not -4 <= int(exponent) < 6:
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa} × 10{str(int(exponent)).translate(SUPERSCRIPTS)}".replace("-", "−")
    places = max(digits - 1 - int(exponent), 0)
    text = f"{value:,.{places}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")


def distinct(values: Sequence[float]) -> list[str]:
    """Write numbers with as many digits as it takes to tell them apart.

    ```python
    >>> distinct([0.25, 0.5]), distinct([0.12341, 0.12344])
    (['0.25', '0.5'], ['0.12341', '0.12344'])

    ```
    """
    for digits in range(3, 17):
        texts = [number(value, digits) for value in values]
        if len(set(texts)) == len(set(values)):
            return texts
    return [repr(value) for value in values]


def listed(parts: Sequence[str]) -> str:
    """Join parts as a sentence does: a, b and c.

    ```python
    >>> listed(["a", "b", "c"])
    'a, b and c'

    ```
    """
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)
