"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memplan.errors import InputError

ModelOption = Annotated[
    Path | None,
    typer.Option("--model", help="model.yaml, or the name of a built-in one (smollm2, scripted)."),
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Folder to write the run to.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the JSON document instead.")]
TraceFormatOption = Annotated[
    str | None, typer.Option("--format", help="Skip sniffing: a name from docs/trace-formats.md.")
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(
        "--columns", help="For a CSV of your own: timestamp=…,input=…,output=…,unit=s|ms|us|iso."
    ),
]
PeriodOption = Annotated[
    str, typer.Option("--sample-period", help="Time between samples of the timeline.")
]
SAMPLE_PERIOD = "100ms"
"""Unless ``--sample-period`` says otherwise."""
LimitOption = Annotated[
    str | None,
    typer.Option("--memory-limit", help="Most memory charged to the engine, such as 2GiB."),
]
PromptsOption = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        help="Your own prompts to compare answers over: JSON lines with prompt or "
        "prompt_token_ids, or a plain .txt; a built-in text by default.",
    ),
]


def replicas_of(text: str) -> int:
    """N of a share written as 1/N."""
    one, slash, many = text.partition("/")
    if one.strip() != "1" or not slash or not many.strip().isdecimal() or int(many) < 1:
        raise InputError(f"--share: got {text!r}, expected 1/N such as 1/8", hint="--share 1/8")
    return int(many)
