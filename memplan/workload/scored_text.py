"""A user's prompts, or a text, that answers are compared over: a file in, passages out.

What is in a passage is text or token ids; only an engine that has the model can turn one into the
other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memplan.errors import InputError

Passage = str | tuple[int, ...]
"""Text, or token ids."""
_TEXT_SUFFIXES = (".txt", ".md")
_FAULTS_SHOWN = 20
_HINT = 'a line is {"prompt": "…"} or {"prompt_token_ids": […]}; a plain text ends in .txt'


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredText:
    name: str
    sha256: str
    passages: tuple[Passage, ...]
    are_prompts: bool
    """Each is continued as it is; a text is continued from places inside it."""


def read_scored_text(path: Path) -> ScoredText:
    """A plain text (.txt, .md), or prompts as JSON lines. Raises InputError with every fault."""
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(f"--prompts {path}: cannot be read: {reason}", hint=_HINT) from error
    is_text = path.suffix.lower() in _TEXT_SUFFIXES
    passages = (text,) if is_text else _prompts(path, text)
    if not any(passages) or (is_text and not text.strip()):
        raise InputError(f"--prompts {path}: holds no prompt", hint=_HINT)
    return ScoredText(
        name=path.name,
        sha256=hashlib.sha256(raw).hexdigest(),
        passages=passages,
        are_prompts=not is_text,
    )


def _prompts(path: Path, text: str) -> tuple[Passage, ...]:
    found: list[Passage] = []
    faults: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found.append(_passage(json.loads(line)))
        except RecursionError:
            faults.append(f"{path}:{number} is nested too deep")
        except ValueError as error:
            faults.append(f"{path}:{number} {_told(error)}")
    if faults:
        more = len(faults) - _FAULTS_SHOWN
        shown = [f"  {fault}" for fault in faults[:_FAULTS_SHOWN]]
        shown += [f"  and {more:,} more"] if more > 0 else []
        head = f"--prompts {path}: {len(faults):,} fault{'s' if len(faults) > 1 else ''}"
        raise InputError("\n".join([head, *shown]), hint=_HINT)
    return tuple(found)


def _told(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is not JSON: {error.msg} at column {error.colno}"
    return str(error)


def _passage(raw: Any) -> Passage:
    """Raises ValueError with what is wrong."""
    if not isinstance(raw, dict):
        raise ValueError(f"got {type(raw).__name__}, expected an object")
    given = [key for key in ("prompt", "prompt_token_ids") if key in raw]
    match given:
        case ["prompt"]:
            prompt = raw["prompt"]
            if not isinstance(prompt, str) or not prompt.strip():
                raise ValueError("prompt: expected a text that is not empty")
            return prompt
        case ["prompt_token_ids"]:
            return tuple(_token_ids(raw["prompt_token_ids"]))
        case _:
            got = " and ".join(given) or "neither"
            raise ValueError(f"got {got}, expected exactly one of prompt and prompt_token_ids")


def _token_ids(raw: Any) -> Iterator[int]:
    if not isinstance(raw, list) or not raw:
        raise ValueError("prompt_token_ids: expected a list that is not empty")
    for place, one in enumerate(raw):
        if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < 2**31:
            raise ValueError(f"prompt_token_ids[{place}]: got {one!r}, expected a token id")
        yield one
