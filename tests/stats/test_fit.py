import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.stats.fit import fit_line

Points = list[tuple[float, float]]

numbers = st.integers(-1000, 1000).map(float)
points = st.lists(st.tuples(numbers, numbers), min_size=3, max_size=30).filter(
    lambda found: len({x for x, _ in found}) > 1
)


@given(st.lists(numbers, min_size=3, max_size=20, unique=True), numbers, numbers)
def test_points_on_a_line_give_that_line_and_leave_nothing(
    xs: list[float], intercept: float, slope: float
) -> None:
    line = fit_line([(x, intercept + slope * x) for x in xs])
    assert line is not None
    assert line.n == len(xs)
    assert line.slope == pytest.approx(slope, abs=1e-6)
    assert line.intercept == pytest.approx(intercept, abs=1e-4)
    assert line.residual == pytest.approx(0, abs=1e-4)


@given(points, st.integers(-3, 3), st.integers(-3, 3))
def test_no_other_line_comes_closer(found: Points, more: int, steeper: int) -> None:
    line = fit_line(found)
    assert line is not None
    other = [y - (line.intercept + more) - (line.slope + steeper) * x for x, y in found]
    distance = math.sqrt(math.fsum(d * d for d in other) / len(found))
    assert line.residual <= distance + 1e-6


@given(points, numbers)
def test_moving_all_points_up_moves_the_line_only(found: Points, up: float) -> None:
    before, after = fit_line(found), fit_line([(x, y + up) for x, y in found])
    assert before is not None and after is not None
    assert after.slope == pytest.approx(before.slope, abs=1e-6)
    assert after.intercept == pytest.approx(before.intercept + up, abs=1e-4)
    assert after.residual == pytest.approx(before.residual, abs=1e-6)


@given(points)
def test_the_order_of_points_is_of_no_meaning(found: Points) -> None:
    forwards, backwards = fit_line(found), fit_line(found[::-1])
    assert forwards is not None and backwards is not None
    assert forwards.slope == pytest.approx(backwards.slope)
    assert forwards.intercept == pytest.approx(backwards.intercept, abs=1e-6)


@given(st.lists(st.tuples(numbers, numbers), max_size=2))
def test_fewer_than_three_points_are_no_line(found: Points) -> None:
    assert fit_line(found) is None


@given(numbers, st.lists(numbers, min_size=3, max_size=10))
def test_points_above_each_other_are_no_line(x: float, ys: list[float]) -> None:
    assert fit_line([(x, y) for y in ys]) is None


def test_the_residual_is_the_root_mean_square_distance() -> None:
    line = fit_line([(0, 1), (0, -1), (2, 1), (2, -1)])
    assert line is not None
    assert (line.slope, line.intercept, line.residual) == (0, 0, 1)
