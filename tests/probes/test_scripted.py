import pytest
from builders import engine, scripted

from memplan.probes import open_probes
from memplan.probes.scripted import ScriptedProbe
from memplan.units import MIB

READINGS = ({"host.rss": 1}, {"host.rss": 2}, {"host.rss": 3})


def test_readings_come_in_turn_and_the_last_one_stays() -> None:
    probe = ScriptedProbe(READINGS)
    probe.attach(engine())
    assert [probe.read()["host.rss"] for _ in range(5)] == [1, 2, 3, 3, 3]


def test_the_next_engine_starts_from_the_first_reading() -> None:
    probe = ScriptedProbe(READINGS)
    probe.read()
    probe.attach(engine(engine_start=1))
    assert probe.read() == {"host.rss": 1}


@pytest.mark.parametrize("weights", ["1MiB", "64MiB"])
def test_a_scripted_deployment_is_read_as_its_script_says(weights: str) -> None:
    (probe,) = open_probes(scripted(script={"weights": weights}))
    probe.attach(engine())
    held = int(weights.removesuffix("MiB")) * MIB + 5 * MIB
    assert probe.read() == {"host.rss": held, "host.anon": held}
