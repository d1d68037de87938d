"""What is no readable YAML mapping is said in one sentence, and nothing ends in a traceback."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from written_model import SCRIPTED, load

from memplan.errors import InputError
from memplan.specs import load_deployment


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "got an empty file"),
        ("# only a comment\n", "got an empty file"),
        ("- a\n- b\n", "got a list"),
        ("just words\n", 'got "just words"'),
        ("a: 1\nb: [1, 2\nc: 3\n", ":3: broken YAML"),
        ("a: 1\n\tb: 2\n", ":2: broken YAML"),
        ("a: 1\n---\nb: 2\n", "broken YAML"),
        ("a: &x [*x]\n", "nested too deeply"),
        ("a: " + "[" * 100 + "]" * 100, "nested too deeply"),
        ("a: " + "[" * 5_000, "nested too deeply"),
        ("a: *nowhere\n", "broken YAML"),
        ("a: !!python/object:os.system x\n", "broken YAML"),
        ("name: 2024-13-45\n", "is not what its tag or form says"),
        ("? [a, b]\n: 1\n", "a key must be a word"),
        ('a: "\x01"\n', "broken YAML"),
    ],
)
def test_what_is_no_yaml_mapping_is_said_in_one_sentence(
    tmp_path: Path, text: str, expected: str
) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)
    assert str(tmp_path / "model.yaml") in caught.value.message
    assert expected in caught.value.message
    assert "\n" not in caught.value.message


def test_aliases_that_fan_out_end(tmp_path: Path) -> None:
    levels = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 9))
    with pytest.raises(InputError, match="nested too deeply"):
        load(tmp_path, f"l0: &l0 [a]\n{levels}\n")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    latin, large = tmp_path / "latin.yaml", tmp_path / "large.yaml"
    latin.write_bytes("memplan: 1\nname: caf\u00e9\n".encode("latin-1"))
    large.write_bytes(b"#" * 2**20 + b"\n")
    for path, expected in [
        (tmp_path / "missing.yaml", "No such file"),
        (tmp_path, "is a folder"),
        (Path("/dev/null"), "not a regular file"),
        (latin, "latin.yaml:2: not UTF-8"),
        (large, "expected under 1 MiB"),
        (tmp_path / ("x" * 300), "cannot be read"),
    ]:
        with pytest.raises(InputError) as caught:
            load_deployment(path)
        assert expected in caught.value.message


def test_a_file_without_read_permission_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(SCRIPTED)
    path.chmod(0)
    try:
        path.read_bytes()
    except PermissionError:
        with pytest.raises(InputError, match="Permission denied"):
            load_deployment(path)
    else:
        pytest.skip("this user may read every file")


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SCRIPTED.replace("\n", "\r\n").encode())
    assert load_deployment(path).name == "small"


@given(st.text(max_size=200) | st.text("{}[]:,-\n &*!|>\"'#%@ab1", max_size=200))
def test_no_text_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes((SCRIPTED + text).encode("utf-8", errors="surrogatepass"))
    try:
        assert load_deployment(path).name
    except InputError as error:
        assert str(path) in error.message
