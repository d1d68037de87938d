"""The model's tokenizer, loaded as an engine that takes text would load it.

memplan sends token ids, so nothing needs it; it is there to be measured.
"""

from __future__ import annotations

import sys
from pathlib import Path

from memplan.errors import InputError

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""transformers makes a tokenizer of any one of them."""
_TEXT = "The tokenizer has been used once, so that nothing of it is left to be loaded."


def check_tokenizer(folder: Path) -> None:
    """Raises InputError where the model's folder has none."""
    if not any((folder / name).is_file() for name in _FILES):
        raise InputError(
            f"settings.tokenizer: {folder} has no tokenizer, expected one of {', '.join(_FILES)}",
            hint="put the model's tokenizer files there, or leave the setting out (tokenizer: never)",
        )


class FolderTokenizer:
    """Loads on demand, and stays."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self) -> None:
        """From its files, through one text and back."""
        from transformers import AutoTokenizer

        loaded = AutoTokenizer.from_pretrained(self._folder)
        loaded.decode(loaded.encode(_TEXT))
        self._loaded = loaded


def _main(source: Path, target: Path) -> None:
    """The tokenizer of a GGUF file, as files of its own: an engine that serves has no GGUF to read."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(target)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
