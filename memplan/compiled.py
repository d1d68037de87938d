"""Small C sources that ship with memplan → libraries and programs in the user's cache.

Compiled once with the machine's compiler, named by the digest of their source. Where that cannot be,
the reason is kept as text: what needs them goes without and says so.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """``path`` of what was compiled, or the ``reason`` why there is none."""

    path: Path | None
    reason: str = ""


def cache_folder() -> Path:
    """Where memplan keeps what can be made again."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "memplan"


def compile_once(source: Path, kind: Literal["library", "program"], cache: Path) -> Compiled:
    """Compiles on first use (0.1 s); never raises."""
    suffix = ".so" if kind == "library" else ""
    try:
        digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    except OSError as error:
        return Compiled(path=None, reason=f"{source} cannot be read: {error.strerror}")
    target = cache / f"{source.stem}-{digest}{suffix}"
    if target.exists():
        return Compiled(path=target)
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return Compiled(path=None, reason="no C compiler (cc, gcc or clang) on PATH")
    scratch = target.with_suffix(f".{os.getpid()}")
    shape = ["-shared", "-fPIC"] if kind == "library" else []
    command = [compiler, "-O2", *shape, "-o", str(scratch), str(source), "-ldl", "-pthread"]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0:
            scratch.rename(target)
            return Compiled(path=target)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Compiled(path=None, reason=f"{compiler} could not be run: {error}")
    lines = done.stderr.strip().splitlines()
    return Compiled(path=None, reason=f"{compiler} failed: {lines[-1] if lines else 'no output'}")
