"""The house rules that a reader cannot see in one file: who may import whom, a light help, hints."""

import ast
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import memplan
from memplan import errors

PACKAGE = Path(memplan.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

HINGE = {"errors", "units", "records"}
MEASURING = HINGE | {
    "specs",
    "clock",
    "procfs",
    "cgroups",
    "page_cache",
    "compiled",
    "pages",
    "process_tree",
}
WING = MEASURING | {"workload", "engines", "probes", "recording", "machine", "replay"}

MAY_IMPORT = {
    "errors": set(),
    "clock": set(),
    "units": {"errors"},
    "records": {"errors", "units"},
    "life": set(),
    "in_flight": {"life"},
    "pages": set(),
    "process_tree": set(),
    "procfs": {"pages"},
    "cgroups": {"errors", "units"},
    "page_cache": {"pages"},
    "compiled": {"errors", "units"},
    "gguf_header": {"errors"},
    "specs": {"errors", "units", "gguf_header", "compiled"},
    "timeline": {"records"},
    "witness_file": {"records"},
    "recording": HINGE | {"specs", "timeline", "witness_file"},
    "machine": HINGE | {"specs"},
    "workload": MEASURING | {"in_flight", "life"},
    "engines": MEASURING | {"gguf_header"},
    "probes": MEASURING,
    "deaths": WING,
    "wear": {"records"},
    "replay": WING | {"deaths", "wear"},
    "quality": WING,
    "measure": WING | {"quality"},
    "gateway_file": HINGE | {"recording"},
    "gateway": WING | {"measure", "quality", "gateway_file", "wear"},
    "resuming": WING | {"measure"},
    "jobs": WING | {"gateway"},
    "doctor": WING | {"witness_file"},
    "progress": WING,
    "builtin": WING,
    "stats": HINGE | {"in_flight", "life"},
    "plan": HINGE | {"specs", "stats"},
    "simulator": {"plan", "compiled"},
    "report": HINGE | {"specs", "stats", "plan"},
    "results": HINGE | {"specs", "stats", "plan", "report", "recording", "builtin", "gateway_file"},
    "trace_document": HINGE | {"report", "workload"},
    "verifying": WING | {"measure", "gateway", "gateway_file", "plan"},
    "verify_document": HINGE | {"report", "verifying"},
    "planning": HINGE | {"specs", "stats", "plan", "report", "recording", "results"},
    "published_schemas": HINGE | {"plan", "simulating"},
    "simulating": HINGE | {"plan", "simulator"},
    "simulation_document": HINGE | {"plan", "simulating", "report"},
    "": set(),  # the package itself: its version
    "__main__": {"cli"},
}
"""Rooms beside its own."""
DOORS = {"cli", "commands"}
"""They may import everything."""

IMPURE = {
    "torch", "pandas", "pyarrow", "plotly", "os", "pathlib", "time", "subprocess", "socket",
    "shutil", "tempfile", "sys", "secrets", "datetime", "psutil", "yaml", "rich", "typer",
}  # fmt: skip
HEAVY = ("torch", "xlsxwriter", "pandas", "plotly", "pyarrow", "pydantic", "numpy", "transformers")


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported_by(path: Path) -> Iterator[str]:
    """Full names of all modules imported anywhere in a file, inside functions and for types too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                assert level == 0, f"{path}: relative import"
                # `from memplan import clock` imports a module, `from memplan.clock import Clock` not.
                submodules = [f"memplan.{alias.name}" for alias in names]
                yield from submodules if module == "memplan" else [module or ""]


def is_allowed(room: str, target: str) -> bool:
    """``target`` is a room; the package itself and a module's own room are open to all."""
    return room in DOORS or target in {"", room} or target in MAY_IMPORT[room]


def rooms_imported_by(path: Path) -> set[str]:
    names = (name.split(".") for name in imported_by(path))
    return {(parts[1:] or [""])[0] for parts in names if parts[0] == "memplan"}


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_what_its_room_may(path: Path) -> None:
    room = room_of(path)
    assert room in {*DOORS, *MAY_IMPORT}, "a new module says here what it may import"
    assert {target for target in rooms_imported_by(path) if not is_allowed(room, target)} == set()


def test_the_rule_sees_an_import_inside_a_function_and_one_for_types(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "import memplan\nfrom memplan import clock\n"
        "if TYPE_CHECKING:\n    from memplan.specs import Deployment\n"
        "def f():\n    import memplan.plan.cost\n"
    )
    assert rooms_imported_by(path) == {"", "clock", "specs", "plan"}
    assert not is_allowed("engines", "plan")


@pytest.mark.parametrize(
    "path", [p for p in MODULES if room_of(p) in ("stats", "plan")], ids=name_of
)
def test_a_planning_module_touches_no_world(path: Path) -> None:
    assert {name.split(".")[0] for name in imported_by(path)} & IMPURE == set()


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(p) == "stats"], ids=name_of)
def test_chance_in_statistics_has_a_seed(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    drawn = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).startswith("random.")
        and not (ast.unparse(node.func) == "random.Random" and node.args)
    ]
    assert drawn == []


def _raised(path: Path) -> Iterator[tuple[int, ast.Call]]:
    """Calls that make one of our errors, by their class or by ``of_faults``."""
    kinds = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.MemplanError)
    }
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).removesuffix(".of_faults").rpartition(".")[2]
            if name in kinds:
                yield node.lineno, node


def test_every_error_says_what_to_type_next() -> None:
    calls = [(path, line, call) for path in MODULES for line, call in _raised(path)]
    assert len(calls) > 20
    hintless = [
        f"{name_of(path)}:{line}"
        for path, line, call in calls
        if not any(k.arg == "hint" and ast.unparse(k.value) != "''" for k in call.keywords)
    ]
    assert hintless == []


def _help(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *flags, "-m", "memplan", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )


def test_help_imports_nothing_heavy() -> None:
    done = _help("-X", "importtime")
    imported = set(re.findall(r"\|\s+([\w.]+)$", done.stderr, re.MULTILINE))
    assert "typer" in imported
    assert imported & set(HEAVY) == set()


def test_help_comes_at_once() -> None:
    took_s = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        _help()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(took_s) < 0.4  # of a processor: other tests run beside this one


SENDING = """
import os, sys
from memplan.recording import RunWriter

def at_end(self):
    print(*(name for name in sys.modules if "." not in name or name.startswith("memplan.")))
    sys.stdout.flush()
    os._exit(0)

RunWriter.close = at_end
from memplan.cli import main
sys.argv = ["memplan", "replay", sys.argv[1], "--model", sys.argv[2], "--out", sys.argv[3]]
main()
"""


def test_what_sends_requests_holds_no_more_than_it_needs(tmp_path: Path, workloads: Path) -> None:
    """Its memory is said beside every run, and is to stay below 60 MiB: benchmarks/sender.py."""
    (tmp_path / "trace.jsonl").write_text(
        '{"timestamp": 0, "input_length": 9, "output_length": 2}\n'
    )
    command = [
        str(tmp_path / "trace.jsonl"),
        str(workloads / "scripted.yaml"),
        str(tmp_path / "run"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", SENDING, *command], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "memplan.replay" in loaded
    assert loaded & (set(HEAVY) - {"pydantic"}) == set()
    assert {name for name in loaded if name.startswith(("memplan.report", "memplan.plan"))} == set()
