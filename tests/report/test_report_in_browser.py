"""The HTML report as a reader gets it: opened from disk in a real browser, without a network."""

from collections.abc import Iterator

import pytest
from example_run import (
    NODES_CSV,
    profile_recording,
    profile_summary,
    replay_recording,
    replay_summary,
)
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from memplan.plan.nodes import parse_nodes
from memplan.report.document import document_of
from memplan.report.html import html_of
from tests.browsing import IN_BROWSER, chromium, printed_sizes, severe, too_wide, violations

pytestmark = IN_BROWSER
CHARTS = (
    "run1-percentiles", "run1-scatter", "run1-timeline-cpu", "run1-parts-cpu",
    "ladder-length", "ladder-batch", "variants-front", "stack-waterfall",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Chromium with the report of a replay and two profiles open."""
    folder = tmp_path_factory.mktemp("report")
    recording = replay_recording()
    runs = [
        (replay_summary(recording), recording),
        (profile_summary(), profile_recording()),
        (profile_summary("<b>int8</b>", scale=0.5), profile_recording("<b>int8</b>", scale=0.5)),
        *(
            (profile_summary(name, scale=scale, step=step), profile_recording(name, scale=scale))
            for name, scale, step in (("stack-1-kv", 0.5, 1), ("stack-2-less", 0.25, 2))
        ),
    ]
    page = folder / "report.html"
    page.write_text(html_of(document_of(runs, parse_nodes(NODES_CSV, "nodes.csv"))), "utf-8")
    with chromium(folder / "profile") as driver:
        driver.get(page.as_uri())
        yield driver


def test_the_console_is_free_of_errors(browser: Chrome) -> None:
    assert severe(browser) == []


def test_nothing_is_fetched(browser: Chrome) -> None:
    script = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    assert [name for name in browser.execute_script(script) if name.startswith("http")] == []


@pytest.mark.parametrize("chart", CHARTS)
def test_every_chart_is_drawn_inside_the_page(browser: Chrome, chart: str) -> None:
    drawn = browser.find_element(By.CSS_SELECTOR, f"#{chart}-plot svg.main-svg")
    assert drawn.size["height"] > 100
    assert drawn.size["width"] <= browser.find_element(By.TAG_NAME, "main").size["width"]
    traces = browser.find_elements(By.CSS_SELECTOR, f"#{chart}-plot .trace")
    assert traces


def test_the_class_table_shows_the_figures_of_the_run(browser: Chrome) -> None:
    rows = browser.find_elements(By.CSS_SELECTOR, "#run1-memory-table tbody tr")
    cells = [cell.text for cell in rows[6].find_elements(By.TAG_NAME, "td")]
    assert cells == [
        "long",
        "attributed",
        "6",
        "107.5 MiB\n97.0–112.0 MiB",
        "122.0 MiB\nat least 112.0 MiB",
        "withheld\nsee p99_withheld",
        "122.0 MiB",
    ]


def test_the_waterfall_goes_down_from_the_base_step_by_step(browser: Chrome) -> None:
    drawn = browser.find_elements(By.CSS_SELECTOR, "#stack-waterfall-plot .trace.bars .point")
    assert len(drawn) == 3
    texts = [bar.find_element(By.TAG_NAME, "text").get_attribute("textContent") for bar in drawn]
    table = browser.find_elements(By.CSS_SELECTOR, "#stack-table tbody tr")
    cells = [row.find_elements(By.TAG_NAME, "td")[4].text.split("\n")[0] for row in table]
    assert texts[1:] == cells[1:]
    assert all(text.startswith("−") for text in texts[1:])


def test_the_section_of_variants_begins_with_what_to_turn_on_first(browser: Chrome) -> None:
    said = browser.find_element(By.CSS_SELECTOR, "#variants > p").text
    assert said.startswith("Nothing to turn on first is shown")
    assert "what it costs in quality was not measured" in said


def test_a_name_with_markup_in_it_is_shown_as_it_is(browser: Chrome) -> None:
    rows = browser.find_elements(By.CSS_SELECTOR, "#variants-table tbody tr td:first-child")
    assert rows[1].text == "<b>int8</b>\nkv: int8"
    names = browser.find_elements(By.CSS_SELECTOR, "#variants-front-plot .textpoint")
    assert "<b>int8</b>" in [name.get_attribute("textContent") for name in names]
    legend = browser.find_element(By.CSS_SELECTOR, "#ladder-length-plot .legend")
    assert "<b>int8</b>, measured" in legend.get_attribute("textContent")


def test_no_table_is_wider_than_a_laptop_shows(browser: Chrome) -> None:
    assert too_wide(browser) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_passes_an_accessibility_check(browser: Chrome, scheme: str) -> None:
    assert violations(browser, scheme) == []


def test_it_prints_on_a4_and_charts_come_back_to_the_screens_width(browser: Chrome) -> None:
    chart = "document.querySelector('#run1-scatter-plot svg.main-svg').clientWidth"
    before = browser.execute_script(f"return {chart}")
    browser.execute_script(
        f"addEventListener('beforeprint', () => {{ window.printedWidth = {chart}; }})"
    )
    sizes = printed_sizes(browser)
    assert sizes
    assert set(sizes) == {(595, 842)}
    assert browser.execute_script("return window.printedWidth") <= 688
    assert browser.execute_script(f"return {chart}") == before > 688
