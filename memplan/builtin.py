"""The workloads that ship with memplan: found in an installed wheel and in a checkout alike."""

from __future__ import annotations

from pathlib import Path

from memplan.errors import InputError

_PACKAGE = Path(__file__).parent


def builtin_path(name: str) -> Path:
    """The file of that name among the built-in workloads. Raises InputError."""
    # A wheel carries the folder as memplan/builtin; a checkout has it beside the package.
    for folder in (_PACKAGE / "builtin", _PACKAGE.parent / "workloads"):
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"no built-in workload is called {name!r}",
        hint="reinstall memplan: its data files are missing",
    )


def model_yaml(given: Path | None, trace: Path | None) -> Path:
    """The model.yaml to use: the given one, else the one beside the trace, else the built-in.

    ``--model scripted`` and other bare names stand for built-in ones.
    """
    if given is None:
        beside = trace.parent / "model.yaml" if trace is not None else None
        return beside if beside and beside.is_file() else builtin_path("smollm2.yaml")
    if not given.exists() and given.suffix == "" and given.parent == Path():
        return builtin_path(f"{given}.yaml")
    return given
