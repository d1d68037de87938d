"""memplan's side: finds the allocator that a variant asks for, to be preloaded into its engine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memplan.errors import MachineError

if TYPE_CHECKING:  # pydantic is no part of an engine's memory
    from memplan.specs import Settings

_LIBRARIES = {
    "jemalloc": ("libjemalloc.so.2",),
    # The small one first: the other also holds a profiler of the heap.
    "tcmalloc": ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4"),
}
_INSTALL = {
    "jemalloc": "apt-get install libjemalloc2",
    "tcmalloc": "apt-get install libtcmalloc-minimal4 (libtcmalloc-minimal4t64 from Debian 13 and "
    "Ubuntu 24.04 on)",
}


def allocator_environment(settings: Settings) -> dict[str, str]:
    """What an engine's environment gets of its settings: ``env``, malloc's variables, the allocator."""
    env = {**settings.malloc_env, **settings.env}
    return {**env, **preloading(settings.allocator, env)}


def preloading(allocator: str, env: Mapping[str, str]) -> dict[str, str]:
    """``LD_PRELOAD`` that puts ``allocator`` before whatever ``env``, or memplan's own environment,
    preloads already; nothing for ``system``. Raises MachineError where it is not installed."""
    if allocator == "system":
        return {}
    theirs = env.get("LD_PRELOAD", os.environ.get("LD_PRELOAD", ""))
    library = find_allocator(allocator, library_folders())
    return {"LD_PRELOAD": " ".join(filter(None, [str(library), theirs]))}


def find_allocator(allocator: str, folders: Sequence[Path]) -> Path:
    """The allocator's library in the first folder that has it.

    Raises MachineError. Whether the library can be loaded and then serves is for the engine process
    to prove (``check_allocator``): a preload that fails is no error to the loader.
    """
    names = _LIBRARIES[allocator]
    for name in names:
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
    raise MachineError(
        f"settings.allocator is {allocator}, and {' or '.join(names)} is not installed",
        hint=_INSTALL[allocator],
    )


def library_folders() -> tuple[Path, ...]:
    """Where the loader looks, and where Python's own environment may hold libraries."""
    told = (Path(one) for one in os.environ.get("LD_LIBRARY_PATH", "").split(":") if one)
    usual = (Path(sys.prefix, "lib"), *map(Path, ("/usr/local/lib", "/usr/lib64", "/usr/lib")))
    return tuple(dict.fromkeys((*told, *_cached_folders(), *usual)))


def _cached_folders() -> Iterator[Path]:
    """The folders of ``ldconfig -p``, whose lines end in ``=> /folder/library``."""
    command = shutil.which("ldconfig", path=f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin")
    if command is None:
        return
    done = subprocess.run([command, "-p"], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if " => " in line:
            yield Path(line.rpartition(" => ")[2]).parent
