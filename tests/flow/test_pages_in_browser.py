"""The pages of a plan, of simulated replicas and of a trace, as a reader gets them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome

from memplan.cli import run
from tests.browsing import IN_BROWSER, chromium, printed_sizes, severe, too_wide, violations

pytestmark = IN_BROWSER
MODEL = """\
memplan: 1
name: paged
engine: scripted
settings: {block_tokens: 16, max_requests: 4, max_kv_tokens: 16384, max_batch_tokens: 512}
classes: [{name: short, when: {input_tokens: "<150"}, slo: {ttft: 400ms}}, {name: long}]
script: {prefill_tokens_per_s: 4000, decode_s_per_step: 20ms, kv_bytes_per_token: 100000}
"""
A4 = (595, 842)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "model.yaml").write_text(MODEL)
    rows = (
        f'{{"timestamp": {at * 500 + at * 7919 % 400}, "input_length": {100 + at % 90}, '
        f'"output_length": {20 + at % 7}}}\n'
        for at in range(300)
    )
    trace = str(folder / "trace.jsonl")
    Path(trace).write_text("".join(rows))
    model, out = str(folder / "model.yaml"), str(folder / "run")
    assert run(["replay", trace, "--model", model, "--out", out]) == 0
    assert run(["plan", out, "--out", str(folder / "plan"), "--loss", "spot"]) == 0
    simulated, inspected = folder / "simulated.html", folder / "trace.html"
    asked = ["--replicas", "2", "--rate", "30", "--out", str(simulated)]
    assert run(["simulate", out, trace, *asked]) == 0
    assert run(["trace", "inspect", trace, "--out", str(inspected)]) == 0
    return {"plan": folder / "plan" / "plan.html", "simulated": simulated, "trace": inspected}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.mark.parametrize("name", ["plan", "simulated", "trace"])
def test_a_page_is_whole_accessible_and_prints_on_a4(
    name: str, pages: dict[str, Path], browser: Chrome
) -> None:
    browser.get(pages[name].as_uri())
    assert severe(browser) == []
    assert too_wide(browser) == []
    assert violations(browser, "light") == []
    assert violations(browser, "dark") == []
    sizes = printed_sizes(browser)
    assert sizes
    assert set(sizes) == {A4}


def test_simulated_replicas_say_what_limits_and_who_fails(
    pages: dict[str, Path], browser: Chrome
) -> None:
    browser.get(pages["simulated"].as_uri())
    titles = browser.execute_script(
        "return [...document.querySelectorAll('table')].map((one) => one.id)"
    )
    assert {"simulated-classes", "what-if", "by-length"} <= set(titles)
