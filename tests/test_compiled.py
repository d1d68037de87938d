"""C sources become libraries and programs once, or a reason why not."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

from memplan.compiled import cache_folder, compile_once

SOURCE = "int answer(void) { return 42; }\nint main(void) { return 7; }\n"


def written(folder: Path, text: str = SOURCE) -> Path:
    path = folder / "small.c"
    path.write_text(text)
    return path


def test_a_library_and_a_program_of_one_source_stand_beside_each_other(tmp_path: Path) -> None:
    source = written(tmp_path)
    library = compile_once(source, "library", tmp_path / "cache").path
    program = compile_once(source, "program", tmp_path / "cache").path
    assert library is not None and program is not None
    assert ctypes.CDLL(str(library)).answer() == 42
    assert subprocess.run([program], check=False).returncode == 7


def test_what_was_compiled_once_needs_no_compiler_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written(tmp_path)
    first = compile_once(source, "library", tmp_path / "cache")
    monkeypatch.setenv("PATH", "")
    assert compile_once(source, "library", tmp_path / "cache") == first
    changed = compile_once(written(tmp_path, SOURCE + "\n"), "library", tmp_path / "cache")
    assert changed.path is None
    assert changed.reason == "no C compiler (cc, gcc or clang) on PATH"


def test_the_compilers_last_word_is_the_reason(tmp_path: Path) -> None:
    failed = compile_once(written(tmp_path, "int x = ;\n"), "program", tmp_path / "cache")
    assert failed.path is None
    assert " failed: " in failed.reason


def test_a_source_that_is_not_there_and_a_cache_that_cannot_be_made_are_reasons(
    tmp_path: Path,
) -> None:
    assert "cannot be read" in compile_once(tmp_path / "no.c", "library", tmp_path).reason
    (tmp_path / "file").write_text("")
    refused = compile_once(written(tmp_path), "library", tmp_path / "file" / "cache")
    assert "could not be run" in refused.reason or "cannot" in refused.reason


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "memplan"
