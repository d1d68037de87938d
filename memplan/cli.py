"""The command line: which commands there are, and how their failures are told.

This is the only place that catches MemplanError and turns it into a sentence and an exit code.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from memplan.commands import comparing, measuring, planning, reading, simulating, tracing, verifying
from memplan.errors import MemplanError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="What each request class costs in resident memory, measured on the real engine.",
    epilog="Exit codes: 0 done, 1 our fault, 2 input, 3 machine, 4 engine, 5 run folder, "
    "6 check failed, 130 interrupted.",
)
for command in (
    measuring.replay,
    measuring.profile,
    reading.report,
    reading.explain,
    comparing.compare,
    comparing.check,
    planning.plan,
    simulating.simulate,
    verifying.verify,
    measuring.demo,
    reading.doctor,
):
    app.command()(command)
app.add_typer(tracing.app, name="trace")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        import memplan

        print(memplan.__version__)
        raise typer.Exit


def run(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code; explained failures become a sentence."""
    try:
        app(args=arguments)
    except MemplanError as error:
        print(f"memplan: {error.message}\n  → {error.hint}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("memplan: left at once; what was recorded can still be read", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our stdout has left; Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
    return 0


def main() -> None:
    sys.exit(run(sys.argv[1:]))
