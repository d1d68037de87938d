"""The process that scores a text with a model, through the KV pool of its own format, and continues
prompts greedily; see ``quality`` for who starts it.

The reference writes its logits to a file, position after position; a variant reads them back and says
how its own differ. Nothing is measured here but answers.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from memplan.engines.scheduler import Scheduler
from memplan.engines.sequence import Row
from memplan.engines.sequence import Sequence as Request
from memplan.engines.torch.runner import TorchRunner
from memplan.engines.torch.scoring_layout import (
    ANSWER_TOKENS,
    CHUNK_TOKENS,
    ScoringLayout,
    scoring_layout,
)
from memplan.errors import EngineError, InputError, MachineError, MemplanError

Scored = tuple[torch.Tensor, list[int]]
"""Logits ``[n, vocabulary]``, and the n tokens that follow in the text."""
Done = Callable[[int], None]
"""Told how many more tokens are done."""
_COMPARED_AT_ONCE = 16
"""Positions, in float64: a KL of 1e-7 between equal models would look like a difference."""


class Comparison:
    """How logits differ from the reference's, position by position."""

    def __init__(self) -> None:
        self._kl: list[float] = []
        self._lost: list[float] = []
        self._surprise: list[float] = []
        self._reference_surprise: list[float] = []
        self._top1_same = 0
        self.broken = 0
        """Positions at which either holds values that are no numbers."""

    def add(self, reference: torch.Tensor, logits: torch.Tensor, targets: Sequence[int]) -> None:
        """Both ``[n, vocabulary]``; ``targets`` are the tokens that really follow."""
        follows = torch.tensor(targets)
        for first in range(0, len(targets), _COMPARED_AT_ONCE):
            part = slice(first, first + _COMPARED_AT_ONCE)
            self._add(reference[part], logits[part], follows[part])

    def told(self) -> Mapping[str, Any]:
        return {
            "kl": self._kl,
            "lost": self._lost,
            "surprise": self._surprise,
            "reference_surprise": self._reference_surprise,
            "top1_same": self._top1_same,
        }

    def _add(self, reference: torch.Tensor, logits: torch.Tensor, follows: torch.Tensor) -> None:
        theirs = torch.log_softmax(reference.double(), dim=-1)
        ours = torch.log_softmax(logits.double(), dim=-1)
        weight = theirs.exp()
        # A token that the reference rules out (padding of the vocabulary) adds nothing.
        terms = torch.where(weight > 0, weight * (theirs - ours), 0.0)
        surprise = -ours.gather(1, follows[:, None])[:, 0]
        reference_surprise = -theirs.gather(1, follows[:, None])[:, 0]
        kl = terms.sum(dim=-1)
        self.broken += int((~kl.isfinite()).sum())
        self._kl += kl.tolist()
        self._lost += (surprise - reference_surprise).tolist()
        self._surprise += surprise.tolist()
        self._reference_surprise += reference_surprise.tolist()
        self._top1_same += int((reference.argmax(dim=-1) == logits.argmax(dim=-1)).sum())


class Scorer:
    """A loaded model and a pool that holds the layout's longest window and all its answers."""

    def __init__(
        self, settings: Mapping[str, Any], folder: str, layout: ScoringLayout, done: Done
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._done = done
        block_tokens: int = settings["block_tokens"]
        windows = max(len(window) for window in layout.windows)
        answers = sum(
            -(-(len(prompt) + ANSWER_TOKENS) // block_tokens) for prompt in layout.prompts
        )
        self._blocks = max(-(-windows // block_tokens), answers)
        self.runner = TorchRunner(settings, folder)
        self.runner.load()
        self.runner.open_pool(self._blocks)

    def scored(self) -> Iterator[Scored]:
        """A chunk at a time."""
        for window in self._layout.windows:
            request = Request(request_id="window", prompt=window, output_tokens=1)
            block_tokens: int = self._settings["block_tokens"]
            request.blocks = list(range(-(-len(window) // block_tokens)))
            for start in range(0, len(window), CHUNK_TOKENS):
                count = min(CHUNK_TOKENS, len(window) - start)
                row = Row(sequence=request, start=start, count=count)
                request.computed = start + count
                targets = list(window[start + 1 : start + 1 + count])
                logits = self.runner.logits((row,), list(range(count)))
                self._done(count)
                if targets:
                    yield logits[: len(targets)], targets
            self.runner.release(tuple(request.blocks))

    def answers(self) -> list[list[int]]:
        """The layout's prompts continued, all of them in one batch."""
        scheduler = Scheduler(
            pool_blocks=self._blocks,
            block_tokens=self._settings["block_tokens"],
            context_tokens=self.runner.context_tokens,
            max_requests=max(1, len(self._layout.prompts)),
            max_batch_tokens=CHUNK_TOKENS,
        )
        requests = [
            Request(request_id=str(number), prompt=prompt, output_tokens=ANSWER_TOKENS)
            for number, prompt in enumerate(self._layout.prompts)
        ]
        for request in requests:
            assert scheduler.submit(request) is None
        scheduler.admit()
        furthest = 0
        while scheduler.has_work:
            rows = scheduler.next_rows()
            scheduler.commit(rows, self.runner.run(rows))
            self.runner.release(scheduler.retire()[1])
            before, furthest = furthest, max(len(one.output) for one in requests)
            self._done(furthest - before)
        return [list(request.output) for request in requests]


def reference_of(config: Mapping[str, Any], file: int) -> Mapping[str, Any]:
    """Scores the reference; its logits go to ``file``. Raises InputError for a text that is none."""
    source = Path(config["source"])
    layout, is_whole = _layout_of(config, source, config["folder"])
    scorer = Scorer(config["settings"], config["folder"], layout, _progress(layout))
    for logits, _ in scorer.scored():
        _keep(logits.float().cpu(), file)
    return {
        "windows": layout.windows,
        "prompts": layout.prompts,
        "is_whole": is_whole,
        "answers": scorer.answers(),
    }


def compared(config: Mapping[str, Any], file: int) -> Mapping[str, Any]:
    """Scores a variant beside the logits in ``file``. Raises EngineError where its are no numbers."""
    layout = ScoringLayout(
        windows=tuple(map(tuple, config["windows"])),
        prompts=tuple(map(tuple, config["prompts"])),
    )
    scorer = Scorer(config["settings"], config["folder"], layout, _progress(layout))
    comparison = Comparison()
    at = 0
    for logits, targets in scorer.scored():
        size = logits.shape[0] * logits.shape[1] * torch.float32.itemsize
        data = bytearray(os.pread(file, size, at))
        at += size
        reference = torch.frombuffer(data, dtype=torch.float32).view(logits.shape)
        comparison.add(reference, logits.float().cpu(), targets)
    if comparison.broken:
        raise EngineError(
            f"its logits are no numbers at {comparison.broken:,} of {layout.scored_tokens:,} "
            "positions: this form cannot hold what the model computes",
            hint="use bf16 in place of fp16",
        )
    return {**comparison.told(), "answers": scorer.answers()}


def _keep(logits: torch.Tensor, file: int) -> None:
    data = memoryview(logits.contiguous().numpy().tobytes())
    try:
        while data:
            data = data[os.write(file, data) :]
    except OSError as error:
        raise MachineError(
            f"the reference's logits cannot be kept in the user's cache: {error.strerror}",
            hint="free some space there: it takes 4 bytes for each position and token of the "
            "vocabulary, for as long as the command runs",
        ) from error


def _layout_of(config: Mapping[str, Any], source: Path, folder: str) -> tuple[ScoringLayout, bool]:
    """And whether it holds every token of the text."""
    from transformers import AutoConfig

    text = AutoConfig.from_pretrained(folder).get_text_config()
    passages: list[list[int]] = []
    begin: list[int] = []
    tokenizer: Any = None
    for passage in config["passages"]:
        if not isinstance(passage, str):
            worst = max(passage)
            if worst >= text.vocab_size:
                raise InputError(
                    f"{config['name']}: a prompt holds token id {worst:,}, and the model's "
                    f"vocabulary ends at {text.vocab_size - 1:,}",
                    hint="give prompts as text, and the model's own tokenizer reads them",
                )
            passages.append(passage)
            continue
        tokenizer = tokenizer or _tokenizer_of(source)
        ids: list[int] = tokenizer(passage)["input_ids"]
        if ids and ids[0] == tokenizer.bos_token_id:
            begin = ids[:1]
            ids = ids[1:]
        passages.append(ids)
    layout = scoring_layout(
        passages,
        begin=begin,
        are_prompts=config["are_prompts"],
        context_tokens=text.max_position_embeddings,
    )
    if not layout.windows:
        raise InputError(
            f"{config['name']}: no prompt is longer than one token, so none follows another",
            hint="give longer prompts",
        )
    kept = sum(len(window) - len(begin) for window in layout.windows)
    return layout, kept == sum(map(len, passages)) and not config["is_cut"]


def _tokenizer_of(source: Path) -> Any:
    """Of the model's source. Raises MachineError where there is none that transformers can read."""
    from transformers import AutoTokenizer

    try:
        if source.is_dir():
            return AutoTokenizer.from_pretrained(source)
        return AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    except Exception as error:  # transformers raises whatever its readers do
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MachineError(
            f"{source}: no tokenizer can be read from the model ({line[:160]})",
            hint="put tokenizer.json and tokenizer_config.json beside its weights, or give prompts "
            "as prompt_token_ids",
        ) from error


def _progress(layout: ScoringLayout) -> Done:
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        _say({"done": done, "total": layout.all_tokens})

    return tell


def _say(message: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    """``python -m memplan.engines.torch.scoring FD``: FD is the file of the reference's logits; what
    to do comes on stdin, and a JSON line on stdout for each thing that there is to say."""
    config = json.loads(sys.stdin.read())
    step = compared if "windows" in config else reference_of
    try:
        _say({"result": step(config, int(sys.argv[1]))})
    except MemplanError as error:
        _say({"fault": error.message, "hint": error.hint})


if __name__ == "__main__":
    main()
