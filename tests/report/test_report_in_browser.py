"""The HTML report as a reader gets it: opened from disk in a real browser, without a network."""

import base64
import re
import shutil
from collections.abc import Iterator
from importlib.resources import files

import pytest
from example_run import (
    NODES_CSV,
    profile_recording,
    profile_summary,
    replay_recording,
    replay_summary,
)
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By

from memplan.plan.nodes import parse_nodes
from memplan.report.document import document_of
from memplan.report.html import html_of

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="chromium and chromedriver are not installed"
    ),
]
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--window-size=1300,900",
)  # fmt: skip
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
    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    driver = Chrome(options=options, service=ChromeService(executable_path=str(DRIVER)))
    try:
        driver.get(page.as_uri())
        yield driver
    finally:
        driver.quit()


def test_the_console_is_free_of_errors(browser: Chrome) -> None:
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


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
    script = """return [...document.querySelectorAll('.scroll')]
        .filter((box) => box.scrollWidth > box.clientWidth)
        .map((box) => box.querySelector('table').id)"""
    assert browser.execute_script(script) == []


AXE = """
const done = arguments[arguments.length - 1];
axe.run(document, {resultTypes: ['violations']}).then((found) => done(found.violations.map(
  (one) => `${one.id}: ${one.help}: ${one.nodes.slice(0, 3).map((node) => node.html.slice(0, 160))}`
)));
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_passes_an_accessibility_check(browser: Chrome, scheme: str) -> None:
    """axe-core's rules of WCAG 2.1 A and AA and its best practices, in both colours."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.execute_script((files("axe_core_python") / "axe.min.js").read_text())
    browser.set_script_timeout(60)
    assert browser.execute_async_script(AXE) == []


def test_it_prints_on_a4_and_charts_come_back_to_the_screens_width(browser: Chrome) -> None:
    chart = "document.querySelector('#run1-scatter-plot svg.main-svg').clientWidth"
    before = browser.execute_script(f"return {chart}")
    browser.execute_script(
        f"addEventListener('beforeprint', () => {{ window.printedWidth = {chart}; }})"
    )
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    pdf = base64.b64decode(printed["data"])
    assert pdf.startswith(b"%PDF")
    boxes = re.findall(rb"/MediaBox\s*\[\s*0 0 ([\d.]+) ([\d.]+)\s*\]", pdf)
    assert len(boxes) >= 1
    assert {(round(float(wide)), round(float(high))) for wide, high in boxes} == {(595, 842)}
    assert browser.execute_script("return window.printedWidth") <= 688
    assert browser.execute_script(f"return {chart}") == before > 688
