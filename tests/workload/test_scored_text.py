"""A user's prompts, right and wrong."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from memplan.builtin import builtin_path
from memplan.errors import InputError
from memplan.workload.scored_text import read_scored_text


def written(folder: Path, text: str, name: str = "prompts.jsonl") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_prompts_are_text_or_token_ids(tmp_path: Path) -> None:
    path = written(tmp_path, '{"prompt": "Hello"}\n\n{"prompt_token_ids": [1, 2], "x": 0}\r\n')
    read = read_scored_text(path)
    assert read.passages == ("Hello", (1, 2))
    assert read.are_prompts
    assert read.name == "prompts.jsonl"
    assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_plain_text_is_one_passage(tmp_path: Path) -> None:
    read = read_scored_text(written(tmp_path, "One.\n\nTwo.\n", "mine.TXT"))
    assert read.passages == ("One.\n\nTwo.\n",)
    assert not read.are_prompts


def test_the_built_in_text_is_long_enough() -> None:
    (text,) = read_scored_text(builtin_path("quality_text.txt")).passages
    assert isinstance(text, str)
    assert len(text.split()) > 1500


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "is not JSON"),
        ("[1]", "got list, expected an object"),
        ("{}", "got neither, expected exactly one of prompt and prompt_token_ids"),
        ('{"prompt": "a", "prompt_token_ids": [1]}', "got prompt and prompt_token_ids"),
        ('{"prompt": " "}', "prompt: expected a text that is not empty"),
        ('{"prompt": 3}', "prompt: expected a text"),
        ('{"prompt_token_ids": []}', "prompt_token_ids: expected a list that is not empty"),
        ('{"prompt_token_ids": "1"}', "prompt_token_ids: expected a list"),
        ('{"prompt_token_ids": [1, -2]}', "prompt_token_ids[1]: got -2, expected a token id"),
        ('{"prompt_token_ids": [true]}', "prompt_token_ids[0]: got True, expected a token id"),
        ('{"prompt_token_ids": [1.5]}', "prompt_token_ids[0]: got 1.5, expected a token id"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_a_line_that_is_no_prompt_is_told_with_its_number(
    tmp_path: Path, line: str, told: str
) -> None:
    path = written(tmp_path, '{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(InputError) as caught:
        read_scored_text(path)
    assert f"{path}:2 " in caught.value.message
    assert told in caught.value.message


def test_all_faults_are_told_at_once_and_many_are_counted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="25 faults") as caught:
        read_scored_text(written(tmp_path, "{}\n" * 25))
    assert caught.value.message.count("expected exactly one") == 20
    assert caught.value.message.endswith("and 5 more")


@pytest.mark.parametrize(("name", "text"), [("a.jsonl", "\n \n"), ("a.txt", " \n"), ("b.txt", "")])
def test_a_file_without_a_prompt_is_a_fault(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(InputError, match="holds no prompt"):
        read_scored_text(written(tmp_path, text, name))


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_scored_text(tmp_path / "none.jsonl")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        read_scored_text(tmp_path / "latin.txt")
