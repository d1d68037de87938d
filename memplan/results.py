"""From run folders to what a command prints or writes; nothing is measured here."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from memplan.builtin import builtin_path
from memplan.errors import InputError
from memplan.gateway_file import is_gateway, read_gateway
from memplan.plan.nodes import NodeSpec, parse_nodes
from memplan.recording import HEADER, read_run
from memplan.records import Recording
from memplan.report.document import document_of
from memplan.report.explain_section import explain_document, explained
from memplan.report.json_document import (
    explain_json,
    gateway_document,
    profile_document,
    replay_document,
)
from memplan.report.limits import Verdict
from memplan.report.limits_section import SUBJECT_NAMES
from memplan.report.llm_d import llm_d_report
from memplan.report.markdown import markdown_of
from memplan.report.pieces import Document
from memplan.report.terminal import print_document
from memplan.stats.gate import Regression
from memplan.stats.paths import GatewaySummary, summarise_paths
from memplan.stats.summarise import summarise
from memplan.stats.summary import RunSummary

Found = tuple[RunSummary, Recording]


def read_runs(paths: Sequence[Path]) -> list[Found]:
    """Every run at these paths, summarised; a profile's folder stands for the runs inside it.

    Raises RecordingError for a path that holds no run.
    """
    return [(summarise(recording), recording) for recording in read_recordings(paths)]


def read_recordings(paths: Sequence[Path]) -> list[Recording]:
    """The same runs, not summarised; those of a profile with the base first and the stack last, else
    as they were measured."""
    return [one for path in paths for one in sorted(map(read_run, _run_folders(path)), key=_place)]


def read_gateways(paths: Sequence[Path]) -> list[GatewaySummary]:
    """Of the paths that are folders of a gateway; the runs of its pools are read as any others."""
    return [summarise_paths(read_gateway(path)) for path in paths if is_gateway(path)]


def print_runs(
    found: Sequence[Found], *, as_json: bool, gateways: Sequence[GatewaySummary] = ()
) -> None:
    """The result on stdout: tables for people, one JSON document for machines."""
    if as_json:
        runs = _documents([summary for summary, _ in found])
        document = gateway_document(gateways[0], runs) if gateways else runs
        print(json.dumps(document, indent=2))
    else:
        print_document(document_of(found, catalog_of(None), gateways=gateways), Console())


def print_one(document: Document, raw: dict[str, Any], *, as_json: bool) -> None:
    """A document that is no run's, on stdout: for people, or as its JSON."""
    if as_json:
        print(json.dumps(raw, indent=2))
    else:
        print_document(document, Console())


def failures_of(
    verdicts: Sequence[Verdict], found: Sequence[Regression], *, allow_unknown: bool
) -> tuple[str, ...]:
    """What a check fails for, each in a few words; what a run cannot tell is never passed over."""
    told = [
        f"{one.limit.class_name}: {SUBJECT_NAMES[one.limit.subject]} broken"
        for one in verdicts
        if one.outcome == "broken"
    ]
    told += [
        f"{one.change.class_name or 'process'}: {one.change.figure} regressed by "
        f"{(one.change.ratio or 0) * 100:.1f} %"
        for one in found
        if one.outcome == "regressed"
    ]
    unknown = [one.limit.class_name for one in verdicts if one.outcome == "unknown"]
    unknown += [
        one.change.class_name or "process" for one in found if one.outcome in ("unknown", "unsure")
    ]
    if unknown and not allow_unknown:
        names = ", ".join(dict.fromkeys(unknown))
        told.append(f"{len(unknown)} figures cannot be told ({names}); --allow-unknown passes them")
    return tuple(told)


def write_document(document: Document, target: Path, *, force: bool, also: str = "") -> None:
    """As its file's ending says. Raises InputError for another ending, and where it cannot be; ``also``:
    what else the caller would have written."""
    match target.suffix.lower():
        case ".md":
            text = markdown_of(document)
        case ".html":
            from memplan.report.html import html_of  # noqa: PLC0415 - plotly, for this one verb

            text = html_of(document)
        case _:
            raise InputError(
                f"{target}: got the ending {target.suffix or 'none'}, expected .html or .md{also}",
                hint="--out report.html, or --out report.md for a pull request",
            )
    _write(target, text, force=force)


def print_explanations(recordings: Sequence[Recording], *, as_json: bool) -> None:
    """Why each class peaked, on stdout: for people, or as one JSON document."""
    if as_json:
        documents = [explain_json(one, explained(one)) for one in recordings]
        print(json.dumps(_one_document(documents), indent=2))
    else:
        print_document(explain_document(recordings), Console())


def write_report(
    found: Sequence[Found],
    target: Path,
    *,
    nodes: Path | None,
    force: bool,
    gateways: Sequence[GatewaySummary] = (),
) -> None:
    """One self-contained page, Markdown, or for one run llm-d's Benchmark Report, as ``target`` ends.
    Raises InputError when it exists or cannot be written."""
    if target.suffix.lower() in (".yaml", ".yml"):
        _write(target, _llm_d_text(found, target), force=force)
        return
    document = document_of(found, catalog_of(nodes), gateways=gateways)
    write_document(document, target, force=force, also=", or .yaml for llm-d")


def _llm_d_text(found: Sequence[Found], target: Path) -> str:
    """Raises InputError for several runs: the format is of one."""
    if len(found) != 1:
        raise InputError(
            f"{target}: llm-d's Benchmark Report is of one run, got {len(found)}",
            hint="name one run, or write --out report.html",
        )
    return yaml.safe_dump(llm_d_report(*found[0]), sort_keys=False)


def _write(target: Path, text: str, *, force: bool) -> None:
    if target.exists() and not force:
        raise InputError(f"{target}: exists already", hint="add --force, or name another --out")
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        with contextlib.suppress(OSError):
            target.unlink()  # half a page would look like a report
        raise InputError(
            f"{target}: cannot be written: {error.strerror}", hint="name another file with --out"
        ) from error


def _run_folders(path: Path) -> list[Path]:
    if (path / HEADER).exists() or not path.is_dir():
        return [path]
    return sorted(p.parent for p in path.glob(f"*/{HEADER}")) or [path]


def _place(recording: Recording) -> tuple[bool, int, str]:
    header = recording.header
    step = header.deployment.get("stack_step")
    number = step if isinstance(step, int) else 0
    return header.variant != "base", number, header.started_at


def _documents(summaries: Sequence[RunSummary]) -> dict[str, Any]:
    """One replay or one profile is its own document."""
    profiles = [s for s in summaries if s.kind == "profile"]
    documents = [replay_document(s) for s in summaries if s.kind == "replay"]
    documents += [profile_document(profiles)] if profiles else []
    return _one_document(documents)


def _one_document(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several runs are a list of their documents."""
    if len(documents) == 1:
        return documents[0]
    return {"schema": "memplan.runs/1", "runs": list(documents)}


def catalog_of(given: Path | None) -> tuple[NodeSpec, ...]:
    path = given or builtin_path("node_prices.csv")
    try:
        return parse_nodes(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}", hint="--nodes nodes.csv") from error
