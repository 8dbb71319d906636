"""Quantities: numbers with a suffix, as `512Mi` or `250m` (Kubernetes: apimachinery/pkg/api/resource)."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal
from typing import Final

_FORM: Final = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([KMGTPE]i)|([numkMGTPE])|[eE]([+-]?\d+))?")
_BINARY: Final = {f"{letter}i": 1024**power for power, letter in enumerate("KMGTPE", start=1)}
_DECIMAL: Final = {letter: Decimal(1000) ** (power - 3) for power, letter in enumerate("num kMGTPE")}


def parsed(quantity: float | str) -> Decimal:
    """The number that a quantity means.

    Raises:
        ValueError: it is none.
    """
    match = _FORM.fullmatch(str(quantity).strip())
    if match is None:
        raise ValueError(f"{quantity!r} is no quantity")
    number, binary, decimal, exponent = match.groups()
    factor = Decimal(_BINARY[binary]) if binary else _DECIMAL[decimal] if decimal else Decimal(10) ** int(exponent or 0)
    return Decimal(number) * factor


def rounded_up(quantity: float | str) -> int:
    """The least whole number that is not below the quantity.

    Raises:
        ValueError: it is none.
    """
    return int(parsed(quantity).to_integral_value(rounding=ROUND_CEILING))
