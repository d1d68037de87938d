"""The built wheel holds what the demo needs, and nothing of the tests."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_wheel_holds_the_builtin_workloads_and_the_schema(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())

    for name in (ROOT / "workloads").iterdir():
        assert f"memplan/builtin/{name.name}" in names
    assert {"memplan/plan.schema.json", "memplan/simulation.schema.json"} <= names
    assert {"memplan/simulator/simulator.c"} <= names
    assert {"memplan/model.schema.json", "memplan/report/page.css", "memplan/py.typed"} <= names
    assert not [name for name in names if name.startswith("tests/")]
