"""costs.yaml: the example loads, and its comments are keys."""

from __future__ import annotations

from pathlib import Path

from memplan.specs.costs import load_costs

EXAMPLE = Path(__file__).parents[2] / "workloads" / "costs.yaml"


def test_the_example_loads_as_it_is_and_with_all_that_it_shows(tmp_path: Path) -> None:
    assert load_costs(EXAMPLE).own is None
    shown = tmp_path / "costs.yaml"
    lines = EXAMPLE.read_text().splitlines()
    start = lines.index("# own:")
    shown.write_text(
        "\n".join([*lines[:start], *(one.removeprefix("# ") for one in lines[start:])])
    )
    found = load_costs(shown)
    assert found.own is not None
    assert found.own.dram_usd_per_gib == 16
    assert found.api is not None
