import pytest

from memplan.errors import EngineError, InputError, MachineError, MemplanError, RecordingError


def test_every_kind_of_failure_has_an_exit_code_of_its_own() -> None:
    kinds = (MemplanError, InputError, MachineError, EngineError, RecordingError)
    assert [kind.exit_code for kind in kinds] == [1, 2, 3, 4, 5]


def test_an_error_carries_its_message_and_its_hint() -> None:
    error = EngineError("the engine stopped", hint="look at engine.log")
    assert (error.message, error.hint) == ("the engine stopped", "look at engine.log")
    assert str(error) == "the engine stopped"


def test_no_error_can_be_made_without_a_hint() -> None:
    with pytest.raises(TypeError, match="hint"):
        MemplanError("something")  # type: ignore[call-arg]


def test_all_faults_of_a_file_are_told_at_once_in_their_order() -> None:
    error = InputError.of_faults("m.yaml", ["12 $.b: bad", "3 $.a: bad"], hint="correct them")
    assert error.message.splitlines() == ["m.yaml: 2 faults", "  12 $.b: bad", "  3 $.a: bad"]
    assert error.hint == "correct them"


def test_one_fault_is_not_counted_in_the_plural() -> None:
    faults = (fault for fault in ["1 $: bad"])
    assert InputError.of_faults("m.yaml", faults, hint="x").message.startswith("m.yaml: 1 fault\n")
