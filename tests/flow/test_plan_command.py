"""From a replay to nodes and money through the real CLI; the workbook recalculated by LibreOffice."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from memplan.cli import run

MODEL = """\
memplan: 1
name: planned
engine: scripted
settings: {block_tokens: 16, max_requests: 8, max_kv_tokens: 65536, max_batch_tokens: 512}
classes:
  - {name: short, when: {input_tokens: "<512"}}
  - {name: long}
script: {prefill_tokens_per_s: 4000, decode_s_per_step: 20ms, kv_bytes_per_token: 100000}
"""
COSTS = """\
memplan_costs: 1
support_ratio: 0.1
people_usd_per_month: 500
wacc: 0.08
own: {cpu_chassis_nic: 9000, dram_gib: 512, dram_usd_per_gib: 16, watts: 600, usd_per_kwh: 0.12}
api: {input: 0.1, output: 0.4}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five minutes of mixed requests on the scripted engine."""
    made = tmp_path_factory.mktemp("plan")
    (made / "model.yaml").write_text(MODEL)
    (made / "costs.yaml").write_text(COSTS)
    rows = (
        f'{{"timestamp": {at * 700 + (at * 7919) % 500}, "input_length": '
        f'{2000 if at % 9 == 0 else 100 + at % 50}, "output_length": {20 + at % 30}}}\n'
        for at in range(430)
    )
    (made / "trace.jsonl").write_text("".join(rows))
    out, model = str(made / "run"), str(made / "model.yaml")
    assert run(["replay", str(made / "trace.jsonl"), "--model", model, "--out", out]) == 0
    return made


def planned(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["plan", str(folder / "run"), "--json", "--node", "c7i.24xlarge", *options]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_a_plan_holds_density_risk_limits_nodes_and_money(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = planned(folder, capsys, "--demand", "4000", "--growth", "0.1", "--months", "6")
    assert found["schema"] == "memplan.plan/1"
    node = found["nodes"][0]
    assert node["replicas"] > node["by_peaks"] > 0
    assert node["overflow"] <= 1e-4 < node["overflow_upper"]
    assert node["next_overflow"] > 0 or node["limited_by"] != "memory"
    # The law is the script's: blocks of 1.6 MB, and 4 KiB for a token of the largest step.
    kv = next(one for one in found["model"]["terms"] if one["name"] == "kv_bytes")
    assert kv["value"] == pytest.approx(1, abs=0.05)
    assert found["model"]["share_explained"] > 0.95
    assert "memory:" in found["budget"]["snippets"]["Kubernetes"]
    serving = [one["nodes_serving"] for one in found["fleet"]]
    assert serving == sorted(serving) and serving[-1] > serving[0]
    assert found["tco"]["usd_per_month"] > 0
    assert {one["code"] for one in found["findings"]} >= {"overflow_not_proven"}


def test_the_files_are_written_once_and_say_the_same(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan"
    found = planned(folder, capsys, "--demand", "40", "--out", str(out))
    assert json.loads((out / "plan.json").read_text()) == found
    assert {one.name for one in out.iterdir()} == {
        f"plan.{ending}" for ending in ("json", "html", "md", "xlsx", "focus.csv")
    }
    replicas = f"holds {found['nodes'][0]['replicas']} replicas"
    assert replicas in (out / "plan.html").read_text()
    assert replicas in (out / "plan.md").read_text()
    assert run(["plan", str(folder / "run"), "--out", str(out)]) == 2
    assert "holds a plan already" in capsys.readouterr().err


def test_without_a_node_the_cheapest_are_planned(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run(["plan", str(folder / "run")]) == 0
    said = capsys.readouterr().out
    assert "How many fit" in said
    assert "What to doubt" in said


@pytest.mark.skipif(shutil.which("soffice") is None, reason="LibreOffice is not installed")
@pytest.mark.parametrize(
    ("costs", "cell", "value", "options"),
    [
        (False, "mean_ratio", 0.25, ("--mean-ratio", "0.25")),
        (False, "peak_requests_per_s", 400, ("--demand", "400")),
        (True, "dram_usd_per_gib", 64, None),
    ],
)
def test_the_workbook_recalculated_after_a_change_is_memplans_own_sum(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    costs: bool,
    cell: str,
    value: float,
    options: tuple[str, ...] | None,
) -> None:
    import openpyxl

    asked = ["--demand", "40", *(["--costs", str(folder / "costs.yaml")] if costs else [])]
    planned(folder, capsys, *asked, "--out", str(tmp_path / "plan"))
    if options is None:
        changed = tmp_path / "changed.yaml"
        changed.write_text(COSTS.replace("dram_usd_per_gib: 16", f"dram_usd_per_gib: {value}"))
        wanted = planned(folder, capsys, "--demand", "40", "--costs", str(changed))
    else:
        wanted = planned(folder, capsys, *asked, *options)
    book = openpyxl.load_workbook(tmp_path / "plan" / "plan.xlsx")
    place = book.defined_names[cell].attr_text.rpartition("!")[2].replace("$", "")
    book["Inputs"][place] = value
    book.save(tmp_path / "changed.xlsx")
    subprocess.run(
        ["soffice", "--headless", f"-env:UserInstallation=file://{tmp_path}/office", "--convert-to",
         "xlsx:Calc MS Excel 2007 XML", "--outdir", str(tmp_path / "out"),
         str(tmp_path / "changed.xlsx")],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    found = openpyxl.load_workbook(tmp_path / "out" / "changed.xlsx", data_only=True)
    sums = {
        name: found["TCO"][
            book.defined_names[name].attr_text.rpartition("!")[2].replace("$", "")
        ].value
        for name in ("month_usd", "usd_per_1m_in", "usd_per_1m_out", "usd_per_gib_month")
    }
    tco = wanted["tco"]
    assert sums == {
        "month_usd": pytest.approx(tco["usd_per_month"]),
        "usd_per_1m_in": pytest.approx(tco["usd_per_1m_input_tokens"]),
        "usd_per_1m_out": pytest.approx(tco["usd_per_1m_output_tokens"]),
        "usd_per_gib_month": pytest.approx(tco["usd_per_gib_month"]),
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--node", "m99.huge"], "--node m99.huge: the catalog has no such instance"),
        (["--loss", "moon"], "--loss: got 'moon', expected none, node, zone or spot"),
        (["--overflow", "2"], "--overflow: got 2"),
        (["--demand", "0"], "demand: got 0 requests/s"),
        (["--costs", "{costs}"], "$.own.drm_gib: unknown key"),
        (["--node", "p5.48xlarge"], "no node can be planned: the run used no GPU"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(COSTS.replace("dram_gib", "drm_gib").replace("0.1\n", "-3\n"))
    capsys.readouterr()
    asked = [one.format(costs=wrong) for one in options]
    assert run(["plan", str(folder / "run"), *asked]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "→" in said


def test_every_fault_of_the_costs_is_told_at_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("memplan_costs: 1\nbasis: monthly\nwacc: 8\nown: {watts: 3}\n")
    capsys.readouterr()
    assert run(["plan", str(folder / "run"), "--costs", str(wrong)]) == 2
    said = capsys.readouterr().err
    for words in (f"{wrong}:2 $.basis", f"{wrong}:3 $.wacc", "cpu_chassis_nic: missing"):
        assert words in said, words


def test_a_node_too_small_for_one_replica_is_an_answer(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from planned import COLUMNS

    nodes = tmp_path / "nodes.csv"
    nodes.write_text(f"{COLUMNS}\nx,tiny,cpu,,2,0.25,,,,0,,,,,,,,\n")
    capsys.readouterr()
    assert run(["plan", str(folder / "run"), "--nodes", str(nodes)]) == 0
    assert "tiny holds not one replica" in capsys.readouterr().out


def test_a_profile_is_no_ground_for_a_plan(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "profile"
    model = str(folder / "model.yaml")
    assert run(["profile", model, "--longest", "256", "--repeats", "1", "--out", str(out)]) == 0
    capsys.readouterr()
    assert run(["plan", str(out)]) == 5
    assert "is a profile, and a plan needs a replay" in capsys.readouterr().err
