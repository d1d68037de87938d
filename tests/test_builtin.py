from pathlib import Path

import pytest

from memplan.builtin import builtin_path, model_yaml
from memplan.errors import InputError

NAMES = (
    "smollm2.yaml",
    "smollm2_techniques.yaml",
    "gemma3.yaml",
    "scripted.yaml",
    "ballast.yaml",
    "node_prices.csv",
    "azure_code_2023.slice.csv",
    "mooncake_conversation.slice.jsonl",
    "quality_text.txt",
)


@pytest.mark.parametrize("name", NAMES)
def test_each_built_in_file_is_found(name: str) -> None:
    assert builtin_path(name).name == name
    assert builtin_path(name).stat().st_size > 0


def test_an_unknown_built_in_name_is_the_users_to_correct() -> None:
    with pytest.raises(InputError, match=r"'nothing\.yaml'"):
        builtin_path("nothing.yaml")


def test_without_a_model_yaml_the_built_in_one_is_used(tmp_path: Path) -> None:
    assert model_yaml(None, None) == builtin_path("smollm2.yaml")
    assert model_yaml(None, tmp_path / "trace.jsonl") == builtin_path("smollm2.yaml")


def test_the_model_yaml_beside_the_trace_goes_before_the_built_in_one(tmp_path: Path) -> None:
    beside = tmp_path / "model.yaml"
    beside.write_text("memplan: 1\n")
    assert model_yaml(None, tmp_path / "trace.jsonl") == beside


def test_the_given_model_yaml_goes_before_the_one_beside_the_trace(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text("memplan: 1\n")
    given = tmp_path / "other.yaml"
    assert model_yaml(given, tmp_path / "trace.jsonl") == given


def test_a_bare_name_stands_for_a_built_in_model() -> None:
    assert model_yaml(Path("scripted"), None) == builtin_path("scripted.yaml")


def test_a_bare_name_that_is_a_file_here_is_that_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("scripted").write_text("memplan: 1\n")
    assert model_yaml(Path("scripted"), None) == Path("scripted")


def test_a_missing_path_is_not_taken_for_a_name(tmp_path: Path) -> None:
    assert model_yaml(tmp_path / "scripted", None) == tmp_path / "scripted"


def test_an_unknown_bare_name_is_told_as_one() -> None:
    with pytest.raises(InputError, match=r"'llama\.yaml'"):
        model_yaml(Path("llama"), None)
