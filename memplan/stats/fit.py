"""A straight line through measured points, with what it leaves unexplained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    intercept: float
    slope: float
    n: int
    residual: float
    """Root mean square distance of the points from the line."""


def fit_line(points: Sequence[tuple[float, float]]) -> Line | None:
    """Ordinary least squares over (x, y). None below three points or when all x are equal."""
    n = len(points)
    if n < 3:
        return None
    mean_x = math.fsum(x for x, _ in points) / n
    mean_y = math.fsum(y for _, y in points) / n
    spread = math.fsum((x - mean_x) ** 2 for x, _ in points)
    if spread == 0:
        return None
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    intercept = mean_y - slope * mean_x
    squares = math.fsum((y - intercept - slope * x) ** 2 for x, y in points)
    return Line(intercept=intercept, slope=slope, n=n, residual=math.sqrt(squares / n))
