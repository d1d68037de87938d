"""The commands on traces: inspect, convert and slice."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memplan.commands.options import (
    ColumnsOption,
    ForceOption,
    JsonOption,
    ModelOption,
    TraceFormatOption,
    replicas_of,
)

app = typer.Typer(no_args_is_help=True, help="Reads, shows and writes traces of any known format.")


@app.command()
def inspect(
    trace: Annotated[Path, typer.Argument(help="A trace of any known format; .gz and .zst too.")],
    model: ModelOption = None,
    trace_format: TraceFormatOption = None,
    columns: ColumnsOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write it to a file too: .html or .md.")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Shows a trace's shape: rates, burstiness, lengths, reuse, classes, and whether it looks made up.

    Example: memplan trace inspect azure_code.csv
    """
    import dataclasses

    from memplan.builtin import model_yaml
    from memplan.progress import reading_progress
    from memplan.results import print_one, write_document
    from memplan.specs import BUILTIN_CLASSES, load_deployment
    from memplan.trace_document import trace_document
    from memplan.workload.summary import summarise_trace

    classes = load_deployment(model_yaml(model, None)).classes if model else BUILTIN_CLASSES
    with reading_progress(trace) as on_bytes:
        summary = summarise_trace(trace, classes, trace_format, columns=columns, on_bytes=on_bytes)
    document = trace_document(summary)
    raw = {
        "schema": "memplan.trace_shape/1",
        **dataclasses.asdict(summary.head),
        "class_rules": dict(summary.class_rules),
        **dataclasses.asdict(summary.shape),
    }
    print_one(document, raw, as_json=as_json)
    if out is not None:
        write_document(document, out, force=force)


@app.command()
def convert(
    trace: Annotated[Path, typer.Argument(help="A trace of any known format; .gz and .zst too.")],
    target: Annotated[Path, typer.Argument(help="File to write, in memplan.trace.v1.")],
    trace_format: TraceFormatOption = None,
    columns: ColumnsOption = None,
    force: ForceOption = False,
) -> None:
    """Writes a trace in memplan's own form, which every option reads back as it was.

    Example: memplan trace convert azure_code.csv code.jsonl
    """
    from memplan.workload.trace import read_trace, write_trace

    read = read_trace(trace, trace_format, columns=columns)
    write_trace(target, read, overwrite=force)
    print(f"{target}: {read.rows_kept:,} of {read.rows_read:,} rows, from {read.format}")


@app.command()
def synth(
    shape: Annotated[str, typer.Argument(help="Its name; `list` says them all.")],
    target: Annotated[
        Path | None, typer.Argument(help="File to write, in memplan.trace.v1.")
    ] = None,
    length: Annotated[str, typer.Option(help="How long, such as 30min.")] = "30min",
    rate: Annotated[
        float, typer.Option(help="Requests a second that users begin, on average.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Everything follows from it.")] = 0,
    force: ForceOption = False,
) -> None:
    """Makes up a trace that strains one thing: it is nobody's traffic, and inspect says so.

    Example: memplan trace synth batch-collisions collisions.jsonl --rate 2
    """
    from memplan.errors import InputError
    from memplan.units import parse_seconds
    from memplan.workload.synth import SHAPES, Ask
    from memplan.workload.synth import synth as make
    from memplan.workload.trace import write_trace

    if shape == "list":
        for name, one in SHAPES.items():
            print(f"{name:18}{one.strains}")
        return
    if shape not in SHAPES:
        raise InputError(
            f"SHAPE: got {shape!r}, expected one of {', '.join(SHAPES)}",
            hint="memplan trace synth list",
        )
    if target is None:
        raise InputError("TARGET: missing", hint=f"memplan trace synth {shape} {shape}.jsonl")
    length_s = parse_seconds(length)
    if not 1e-3 <= rate <= 1e4 or not 1 <= length_s <= 31 * 86_400 or rate * length_s > 1e7:
        raise InputError(
            f"--rate {rate:g} and --length {length}: expected 0.001 to 10,000 a second, 1s to 744h, and "
            "no more than 10 million requests together",
            hint="memplan trace synth node-pressure pressure.jsonl --rate 2 --length 30min",
        )
    made = make(shape, Ask(length_s=length_s, requests_per_s=rate), seed=seed)
    write_trace(target, made, overwrite=force)
    print(f"{target}: {made.rows_kept:,} rows over {made.span_s:,.0f} s, made up ({shape})")


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(help="Of ServeGen's tables, one pair for each client.")],
    target: Annotated[Path, typer.Argument(help="File to write, in memplan.trace.v1.")],
    start: Annotated[
        str, typer.Option("--from", help="Time of the clients' day, such as 12h.")
    ] = "0s",
    end: Annotated[str, typer.Option("--to", help="Until, such as 13h.")] = "24h",
    seed: Annotated[int, typer.Option(help="Everything follows from it.")] = 0,
    force: ForceOption = False,
) -> None:
    """Draws requests from ServeGen's rates and lengths: a sample, and no log.

    Example: memplan trace sample data/reason/deepseek-r1 noon.jsonl --from 12h --to 13h
    """
    from memplan.units import parse_seconds
    from memplan.workload.servegen import sample_servegen
    from memplan.workload.trace import write_trace

    made = sample_servegen(folder, parse_seconds(start), parse_seconds(end), seed=seed)
    write_trace(target, made, overwrite=force)
    print(f"{target}: {made.rows_kept:,} rows over {made.span_s:,.0f} s, drawn with seed {seed}")


@app.command("slice")
def slice_(
    trace: Annotated[Path, typer.Argument(help="A trace of any known format; .gz and .zst too.")],
    target: Annotated[Path, typer.Argument(help="File to write, in memplan.trace.v1.")],
    start: Annotated[str, typer.Option("--from", help="Since the first row, such as 10min.")] = "",
    end: Annotated[str, typer.Option("--to", help="Until, such as 20min.")] = "",
    at: Annotated[
        str,
        typer.Option(
            "--around",
            help="Instead of --from and --to: where the KV in flight is at its p50, p95, p99 or most.",
        ),
    ] = "",
    length: Annotated[str, typer.Option(help="Of that window.")] = "10min",
    reference: Annotated[
        str, typer.Option(help="How long requests took, for --around: as in memplan replay.")
    ] = "",
    share: Annotated[
        str,
        typer.Option(
            help="One of N replicas' share, such as 1/8: whole sessions or prefix groups."
        ),
    ] = "1/1",
    seed: Annotated[int, typer.Option(help="Which of the shares.")] = 0,
    trace_format: TraceFormatOption = None,
    columns: ColumnsOption = None,
    force: ForceOption = False,
) -> None:
    """Cuts a window of time, and one replica's share of what is in it, as a router would give it.

    Example: memplan trace slice day.jsonl hour.jsonl --from 9h --to 10h --share 1/8

    Example: memplan trace slice day.jsonl peak.jsonl --around p99 --reference prefill=14000,tpot=13ms
    """
    from memplan.errors import InputError
    from memplan.units import parse_seconds
    from memplan.workload.reference import lives_of, parse_reference
    from memplan.workload.slicing import share_of, window_of
    from memplan.workload.trace import read_trace, write_trace
    from memplan.workload.windows import AROUND, around

    if at and (at not in AROUND or start or end or not reference):
        raise InputError(
            f"--around: got {at!r}, expected one of {', '.join(AROUND)}, with --reference and without "
            "--from and --to",
            hint="--around p99 --length 10min --reference prefill=14000,tpot=13ms",
        )
    read = read_trace(trace, trace_format, columns=columns)
    start_s = parse_seconds(start) if start else 0.0
    end_s = parse_seconds(end) if end else read.span_s
    if at:
        lives = lives_of(read.rows, parse_reference(reference))
        start_s, end_s = around(lives, read.span_s, AROUND[at], parse_seconds(length))
    replicas = replicas_of(share)
    made = share_of(window_of(read, start_s, end_s), replicas, seed=seed)
    write_trace(target, made, overwrite=force)
    print(
        f"{target}: {made.rows_kept:,} of {read.rows_kept:,} rows, {made.span_s:.0f} s, of "
        f"{start_s:,.0f} to {end_s:,.0f} s"
    )
