"""A run folder gives back what was written, however it was cut off, and says why it cannot."""

import dataclasses
import json
import re
import resource
import tempfile
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from builders import (
    completed,
    end,
    engine,
    flight,
    header,
    recording,
    request,
    samples,
    segment,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memplan.errors import RecordingError
from memplan.recording import (
    EVENTS,
    HEADER,
    REQUESTS,
    SCHEDULE,
    SEGMENTS,
    TIMELINE,
    RunWriter,
    read_run,
)
from memplan.records import (
    SCHEMA,
    EngineFacts,
    Finding,
    PlantedSpike,
    Quality,
    Recording,
    Request,
    RequestRecord,
    RunEnd,
    RunHeader,
    Sample,
    Segment,
)
from memplan.stats.summarise import summarise

SPIKE = PlantedSpike(spike_bytes=1000, began_s=0.1, resident_s=0.2, gone_s=0.3)
DOUBT = Finding(code="doubt", text="Something was seen.", hint="Look again.")


def write(run: Recording, folder: Path) -> None:
    writer = RunWriter(folder, run.header)
    writer.schedule(run.requests)
    for engine_ in run.engines:
        writer.engine(engine_)
    for segment_ in run.segments:
        writer.segment(segment_)
    for record in run.outcomes.values():
        writer.request(record)
    for sample in run.samples:
        writer.sample(sample)
    for spike in run.planted:
        writer.planted(spike)
    for finding in run.findings:
        writer.finding(finding)
    if run.quality is not None:
        writer.quality(run.quality)
    if run.end is not None:
        writer.end(run.end)
    writer.close()


def codes(run: Recording) -> list[str]:
    return [finding.code for finding in run.findings]


# --- any recording ---------------------------------------------------------------------------

_PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    str: st.text(max_size=6),
    int: st.integers(0, 2**62),
    float: st.floats(allow_nan=False, allow_infinity=False),
    object: st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=4,
    ),
}


def any_of(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a record's field type, and so of any record: fields added later are covered."""
    args = typing.get_args(hint)
    match typing.get_origin(hint):
        case typing.Literal:
            return st.sampled_from(args)
        case origin if origin is tuple:
            return st.lists(any_of(args[0]), max_size=3).map(tuple)
        case origin if origin is Mapping:
            return st.dictionaries(any_of(args[0]), any_of(args[1]), max_size=3)
        case types.UnionType | typing.Union:
            return st.none() | any_of(args[0])
    return any_record(hint) if dataclasses.is_dataclass(hint) else _PLAIN[hint]


def any_record(cls: Any, **fixed: Any) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls)
    fields = {name: any_of(hint) for name, hint in hints.items() if name not in fixed}
    return st.fixed_dictionaries(fields).map(lambda values: cls(**values, **fixed))


GAUGES = st.dictionaries(
    st.sampled_from(["host.rss", "host.anon", "nvml.0.used"]), st.integers(0, 2**62)
)


@st.composite
def recordings(draw: st.DrawFn) -> Recording:
    ids = draw(st.lists(st.text(max_size=6), unique=True, max_size=3))
    times = _PLAIN[float]
    return Recording(
        path="",
        header=draw(any_record(RunHeader, schema=SCHEMA)),
        engines=tuple(draw(st.lists(any_record(EngineFacts), max_size=2))),
        requests=tuple(draw(any_record(Request, request_id=i)) for i in ids),
        outcomes={i: draw(any_record(RequestRecord, request_id=i)) for i in ids},
        segments=tuple(draw(st.lists(any_record(Segment), max_size=3))),
        samples=tuple(draw(st.lists(st.builds(Sample, t_s=times, values=GAUGES), max_size=5))),
        planted=tuple(draw(st.lists(any_record(PlantedSpike), max_size=2))),
        findings=tuple(draw(st.lists(any_record(Finding), max_size=2))),
        end=draw(any_record(RunEnd)),
        quality=draw(st.none() | any_record(Quality)),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(recordings())
def test_what_was_written_is_read_again(run: Recording) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        write(run, path)
        assert read_run(path) == dataclasses.replace(run, path=str(path))


def test_a_gauge_that_comes_late_keeps_its_values(tmp_path: Path) -> None:
    late = (
        Sample(t_s=0.0, values={}),
        Sample(t_s=1.5, values={"b": 1}),
        Sample(t_s=3.0, values={"a": 2, "b": 3}),
        Sample(t_s=4.5, values={"b": 4}),
    )
    writer = RunWriter(tmp_path / "run", header())
    for sample in late:
        writer.sample(sample)
        writer.flush_samples()
    writer.close()
    assert writer.sample_count == 4
    assert read_run(tmp_path / "run").samples == late


def test_samples_reach_the_disk_within_a_second(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", header())
    for sample in samples(*range(1, 13)):  # 0.0 to 1.1 s
        writer.sample(sample)
    assert len(read_run(tmp_path / "run").samples) == 11
    writer.close()
    assert len(read_run(tmp_path / "run").samples) == 12


def test_lines_reach_the_disk_at_once(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", header())
    writer.schedule([request()])
    writer.request(completed(request()))
    writer.segment(segment())
    writer.engine(engine())
    read = read_run(tmp_path / "run")
    writer.close()
    assert (len(read.segments), len(read.engines)) == (1, 1)
    assert read.outcomes["a"].outcome == "completed"


# --- cut off ---------------------------------------------------------------------------------


def long_recording() -> Recording:
    requests = tuple(request(f"r{n}", arrival_s=float(n)) for n in range(6))
    return recording(
        requests=requests,
        outcomes={r.request_id: completed(r) for r in requests},
        segments=tuple(
            segment(start_s=float(n), end_s=n + 1.0, in_flight=(flight(f"r{n}"),)) for n in range(6)
        ),
        samples=(*samples(*[200_000_000] * 40), Sample(t_s=9.0, values={"nvml.0.used": 5})),
        planted=(SPIKE,),
        findings=(DOUBT,),
        end=end(samples=41),
    )


class CutRun:
    """A run on disk, of which one file at a time is cut off and made whole again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write(long_recording(), folder)
        self.whole = read_run(folder)
        self._bytes = {path.name: path.read_bytes() for path in folder.iterdir()}

    def size(self, name: str) -> int:
        return len(self._bytes[name])

    def is_torn_at(self, name: str, size: int) -> bool:
        """Whether a cut after ``size`` bytes leaves a part of a line."""
        data = self._bytes[name]
        tail = data[:size].rpartition(b"\n")[2]
        return bool(tail) and data[size : size + 1] != b"\n"

    def read_cut(self, name: str, size: int) -> Recording:
        path = self.folder / name
        path.write_bytes(self._bytes[name][:size])
        try:
            return read_run(self.folder)
        finally:
            path.write_bytes(self._bytes[name])


@pytest.fixture(scope="module")
def cut_run(tmp_path_factory: pytest.TempPathFactory) -> CutRun:
    return CutRun(tmp_path_factory.mktemp("cut") / "run")


def test_a_whole_run_has_no_finding_of_its_reading(cut_run: CutRun) -> None:
    assert cut_run.whole.findings == (DOUBT,)


@pytest.mark.parametrize("name", [SCHEDULE, REQUESTS, SEGMENTS, EVENTS, TIMELINE])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_file_of_lines_cut_at_any_byte_loses_its_last_line_only(
    cut_run: CutRun, name: str, data: st.DataObject
) -> None:
    size = data.draw(st.integers(0, cut_run.size(name) - 1))
    read = cut_run.read_cut(name, size)
    assert ("torn_tail" in codes(read)) == cut_run.is_torn_at(name, size)
    whole = cut_run.whole
    assert read.requests == whole.requests[: len(read.requests)]
    assert read.segments == whole.segments[: len(read.segments)]
    assert read.engines == whole.engines[: len(read.engines)]
    assert read.samples == whole.samples[: len(read.samples)]
    assert ("run_cut_off" in codes(read)) == (read.end is None)
    assert (read.end is None) == (name == EVENTS and size < cut_run.size(name) - 1)
    assert summarise(read).findings


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_cut_header_is_an_explained_failure(cut_run: CutRun, data: st.DataObject) -> None:
    size = data.draw(st.integers(0, cut_run.size(HEADER) - 2))
    with pytest.raises(RecordingError, match=r"header\.json: cannot be read"):
        cut_run.read_cut(HEADER, size)


def test_a_run_without_an_end_counts_what_was_in_flight_as_unfinished(tmp_path: Path) -> None:
    requests = (request("done"), request("begun"), request("never"))
    run = recording(
        requests=requests,
        outcomes={"done": completed(requests[0])},
        segments=(segment(in_flight=(flight("done"), flight("begun"))),),
        end=None,
    )
    write(run, tmp_path / "run")
    read = read_run(tmp_path / "run")
    outcomes = {i: record.outcome for i, record in read.outcomes.items()}
    assert outcomes == {"done": "completed", "begun": "unfinished", "never": "not_sent"}
    assert codes(read) == ["run_cut_off"]


def test_a_run_killed_before_its_first_request_is_still_a_run(tmp_path: Path) -> None:
    RunWriter(tmp_path / "run", header()).close()
    read = read_run(tmp_path / "run")
    assert (read.requests, read.segments, read.samples, read.end) == ((), (), (), None)
    assert summarise(read).peak_bytes is None


# --- changed afterwards, or by a newer memplan ---------------------------------------------------


def _edit_line(path: Path, number: int, edit: Callable[[dict[str, Any]], Any]) -> None:
    lines = path.read_text().splitlines()
    lines[number] = json.dumps(edit(json.loads(lines[number])))
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    write(long_recording(), tmp_path / "run")
    return tmp_path / "run"


def test_fields_and_events_of_a_newer_memplan_are_passed_over(run_folder: Path) -> None:
    before = read_run(run_folder)
    for name in (HEADER, SCHEDULE, REQUESTS, SEGMENTS, EVENTS):
        _edit_line(run_folder / name, 0, lambda raw: {**raw, "from_the_future": {"x": [1]}})
    _edit_line(run_folder / HEADER, 0, lambda raw: {**raw, "machine": {**raw["machine"], "x": 1}})
    with (run_folder / EVENTS).open("a") as events:
        events.write('{"type":"weather","wind_m_per_s":3}\n{"no":"type"}\n')
    assert read_run(run_folder) == before


def test_a_field_that_an_older_memplan_did_not_write_has_its_default(run_folder: Path) -> None:
    _edit_line(run_folder / SEGMENTS, 0, lambda raw: {k: raw[k] for k in raw if k != "waiting"})
    assert read_run(run_folder).segments[0].waiting == 0


def test_another_schema_is_not_guessed_at(run_folder: Path) -> None:
    _edit_line(run_folder / HEADER, 0, lambda raw: {**raw, "schema": "memplan.recording/9"})
    with pytest.raises(RecordingError, match=r"schema is 'memplan\.recording/9'"):
        read_run(run_folder)


@pytest.mark.parametrize("text", ["[]", "5", "null", "{}", '"x"'])
def test_a_header_that_is_no_header_is_an_explained_failure(run_folder: Path, text: str) -> None:
    (run_folder / HEADER).write_text(text)
    with pytest.raises(RecordingError, match="schema is"):
        read_run(run_folder)


@pytest.mark.parametrize("name", [SCHEDULE, REQUESTS, SEGMENTS, EVENTS])
@pytest.mark.parametrize("line", ["{", "5", "[1]", "null"])
def test_a_line_broken_in_the_middle_is_named(run_folder: Path, name: str, line: str) -> None:
    lines = (run_folder / name).read_text().splitlines()
    (run_folder / name).write_text("\n".join([lines[0], line, *lines[1:]]) + "\n")
    with pytest.raises(RecordingError, match=rf"{name}:2: broken in the middle"):
        read_run(run_folder)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "timeline.jsonl:2: broken in the middle"),
        ("5", "timeline.jsonl:2: broken in the middle: got int, expected an array"),
        ("{}", "timeline.jsonl:2: broken in the middle: got dict, expected an array"),
        ("[]", "a sample of this run cannot be read"),
        ("[1.5]", "a sample of this run cannot be read"),
        ("[1.5,2,3,4,5,6]", "a sample of this run cannot be read"),
    ],
)
def test_a_timeline_changed_in_the_middle_is_an_explained_failure(
    run_folder: Path, line: str, words: str
) -> None:
    lines = (run_folder / TIMELINE).read_text().splitlines()
    (run_folder / TIMELINE).write_text("\n".join([lines[0], line, *lines[1:]]) + "\n")
    with pytest.raises(RecordingError, match=re.escape(words)):
        read_run(run_folder)


@pytest.mark.parametrize(
    ("name", "change", "noun"),
    [
        (HEADER, {"workload": 5}, "WorkloadFacts"),
        (HEADER, {"command": 5}, "RunHeader"),
        (SEGMENTS, {"in_flight": [5]}, "InFlight"),
    ],
)
def test_a_field_of_another_shape_is_an_explained_failure(
    run_folder: Path, name: str, change: dict[str, Any], noun: str
) -> None:
    _edit_line(run_folder / name, 0, lambda raw: {**raw, **change})
    with pytest.raises(RecordingError, match=f"a {noun} of this run cannot be read"):
        read_run(run_folder)


def test_a_missing_field_is_an_explained_failure(run_folder: Path) -> None:
    _edit_line(run_folder / SEGMENTS, 0, lambda raw: {k: raw[k] for k in raw if k != "peak"})
    with pytest.raises(RecordingError, match="'peak'"):
        read_run(run_folder)


def test_a_folder_in_the_place_of_a_file_is_an_explained_failure(run_folder: Path) -> None:
    (run_folder / SEGMENTS).unlink()
    (run_folder / SEGMENTS).mkdir()
    with pytest.raises(RecordingError, match=r"segments\.jsonl: cannot be read"):
        read_run(run_folder)


@pytest.mark.parametrize("name", ["", "nowhere", "file.txt", "file.txt/run"])
def test_what_is_no_run_folder_is_said_to_be_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(RecordingError, match="not a run folder"):
        read_run(tmp_path / name)


# --- where a run cannot be written ----------------------------------------------------------------


def test_a_run_is_not_written_over_another_one(run_folder: Path) -> None:
    before = (run_folder / SEGMENTS).read_bytes()
    with pytest.raises(RecordingError, match="already holds a run") as caught:
        RunWriter(run_folder, header())
    assert "--force" in caught.value.hint
    assert (run_folder / SEGMENTS).read_bytes() == before


def test_force_replaces_a_run_and_leaves_nothing_of_it(run_folder: Path) -> None:
    (run_folder / "notes.txt").write_text("mine")
    RunWriter(run_folder, header(run_id="another"), force=True).close()
    read = read_run(run_folder)
    assert read.header.run_id == "another"
    assert (read.requests, read.segments, read.samples, read.engines) == ((), (), (), ())
    assert (run_folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("force", [False, True])
def test_files_that_are_no_run_are_never_touched(tmp_path: Path, force: bool) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RecordingError, match="files that are not a run"):
        RunWriter(tmp_path, header(), force=force)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_empty_folder_may_be_there_already(tmp_path: Path) -> None:
    RunWriter(tmp_path, header()).close()
    assert read_run(tmp_path).header == header()


@pytest.mark.parametrize("name", ["file.txt", "file.txt/run"])
def test_a_file_in_the_way_is_told_in_a_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(RecordingError, match="cannot write the run: a file is in the way"):
        RunWriter(tmp_path / name, header())


def test_a_missing_permission_is_told_in_a_sentence() -> None:
    # Not even root may make a folder here.
    with pytest.raises(RecordingError, match="no permission to write here") as caught:
        RunWriter(Path("/sys/memplan-run"), header())
    assert "--out" in caught.value.hint


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Files of this process stop growing there, as on a full disk (SIGXFSZ is ignored by Python)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_in_a_sentence_and_what_was_written_is_read(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", header())
    writer.engine(engine())
    with (
        largest_file(20_000),
        pytest.raises(RecordingError, match="cannot write the run: a file may not grow"),
    ):
        for number in range(1000):
            writer.segment(segment(start_s=float(number), end_s=number + 1.0))
    writer.close()
    read = read_run(tmp_path / "run")
    assert len(read.segments) > 10
    assert codes(read) == ["torn_tail", "run_cut_off"]


def test_a_disk_full_of_samples_is_told_in_a_sentence_by_flush_and_by_close(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", header())
    with largest_file(20_000):
        with pytest.raises(RecordingError, match="cannot write the run"):
            for number in range(100):
                for sample in samples(*range(200)):
                    writer.sample(Sample(t_s=sample.t_s + 20 * number, values=sample.values))
        writer.sample(Sample(t_s=9e9, values={}))
        with pytest.raises(RecordingError, match="cannot write the run"):
            writer.close()
    read = read_run(tmp_path / "run")
    assert len(read.samples) > 10
    assert "torn_tail" in codes(read)


def test_a_disk_too_full_for_a_header_is_told_in_a_sentence(tmp_path: Path) -> None:
    with largest_file(10), pytest.raises(RecordingError, match="cannot write the run"):
        RunWriter(tmp_path / "run", header())
