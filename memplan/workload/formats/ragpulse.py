"""RAGPulse: seconds as text, and prompts as passages of different lengths, whose tables lie beside the
trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from memplan.workload.formats.fields import BadFieldError, got, json_object, text_of, tokens_of
from memplan.workload.formats.json_logs import Record, log_rows, number_in
from memplan.workload.formats.reading import Format, Lines, Reading, Timed
from memplan.workload.trace_row import TraceRow

_BLOCK_TOKENS = 16
_PARTS = {
    "sys_prompt": ("sys_prompt.jsonl", "sys_prompt_id"),
    "passages_ids": ("passages.jsonl", "passage_id"),
    "history": ("history.jsonl", "history_id"),
    "web_search": ("web_search.jsonl", "web_search_id"),
    "user_input": ("user_input.jsonl", "user_input_id"),
}
"""Parts of a prompt in the order in which it is put together: the end of the name of its table, and the
table's key."""
Tables = Mapping[str, Mapping[int, int]]
"""Part → id → tokens."""


class _Blocks:
    """Passages in, blocks of one size out: a block is the same as another's where all passages up to its
    last token are."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._chains: dict[tuple[int, str, int], int] = {}
        """(chain before, part, id) → the chain with that passage."""
        self._ids: dict[tuple[int, int], int] = {}
        """(chain, number of the block) → its id."""

    def of(self, parts: Record, tokens: int, line: int) -> tuple[int, ...]:
        """One id for each started block of a prompt of ``tokens``. What the tables do not cover is the
        row's own."""
        found: list[int] = []
        wanted = -(-tokens // _BLOCK_TOKENS)
        chain = end = 0
        for part in _PARTS:
            for one in _ids_in(parts, part):
                length = self._tables[part].get(one)
                if length is None:
                    raise BadFieldError(f"hash_ids.{part}: {one} is not in its table")
                chain = self._chains.setdefault((chain, part, one), len(self._chains) + 1)
                end += length
                whole = min(wanted, end // _BLOCK_TOKENS)
                found += (self._id(chain, number) for number in range(len(found), whole))
        return (*found, *(self._id(-line, number) for number in range(len(found), wanted)))

    def _id(self, chain: int, number: int) -> int:
        return self._ids.setdefault((chain, number), len(self._ids))


def _ids_in(parts: Record, part: str) -> Sequence[int]:
    ids = parts.get(part) or []
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        raise BadFieldError(f"hash_ids.{part}: got {got(ids)}, expected a list of whole numbers")
    return ids


def _tables_beside(path: Path) -> Tables | None:
    """None where one of them is missing, or says something else."""
    tables = {}
    for part, (ending, key) in _PARTS.items():
        files = sorted(path.parent.glob(f"*{ending}"))
        if not files:
            return None
        lengths: dict[int, int] = {}
        with files[0].open(encoding="utf-8", errors="replace") as lines:
            for text in lines:
                record = json_object(text) or {}
                one, tokens = record.get(key), record.get("token_length")
                if type(one) is int and type(tokens) is int and tokens >= 0:
                    lengths[one] = tokens
        if not lengths:
            return None
        tables[part] = lengths
    return tables


def _rows(lines: Lines, reading: Reading) -> Iterator[Timed]:
    """Without the tables no prefix is known, and none is invented."""
    tables = _tables_beside(reading.path)
    blocks = _Blocks(tables) if tables is not None else None
    reading.block_size = _BLOCK_TOKENS if blocks is not None else None

    def row(number: int, record: Record) -> Timed:
        tokens = tokens_of(record, "input_length", least=0)
        parts = record.get("hash_ids")
        if not isinstance(parts, dict):
            raise BadFieldError(f"hash_ids: got {got(parts)}, expected an object of lists")
        return Timed(
            time=number_in(record, "timestamp"),
            row=TraceRow(
                line=number,
                timestamp_s=0.0,
                input_tokens=tokens,
                output_tokens=tokens_of(record, "output_length", least=0),
                session_id=text_of(record, "session_id"),
                hash_ids=blocks.of(parts, tokens, number) if blocks is not None else (),
            ),
        )

    yield from log_rows(lines, reading, row)


RAGPULSE = Format(
    name="ragpulse",
    recognised_by="a JSON object whose hash_ids is an object",
    fits=lambda first: isinstance((json_object(first[0]) or {}).get("hash_ids"), dict),
    rows=_rows,
)
