"""Keep the state of an unfinished training in files, so that it goes on bit for bit after any interruption.

Each state is a safetensors file with its sha256 in a small file beside it, which is written last. The newest
two are kept: where the newest is damaged, the training goes on from the one before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from torchdoctor.files.kill_points import kill_point
from torchdoctor.files.writing import write_bytes
from torchdoctor.treatment.recipe import TrainingState
from torchdoctor.types import InputError

STEPS_VARIABLE = "TORCHDOCTOR_CHECKPOINT_STEPS"
EVERY_SECONDS = 60.0
LARGEST_SHARE = 0.05  # of the time that saving may take: where it is slow, it is done less often
NUMBERS = "__numbers__"  # the tensor that holds the JSON of what is no tensor
ENDING, SUM_ENDING = ".safetensors", ".sha256"


class CheckpointFolder:
    """The checkpoints of one training, in a folder of their own.

    A state is due `every_seconds`, or every n steps where the environment variable
    TORCHDOCTOR_CHECKPOINT_STEPS is n. `label` (such as `control/seed0`) names the training in kill points.
    `stop` says whether to save and stop, `say` is told which file was damaged.
    """

    def __init__(
        self,
        folder: Path,
        *,
        label: str = "",
        every_seconds: float = EVERY_SECONDS,
        stop: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.folder, self.label = folder, label or folder.name
        self.every_seconds, self.every_steps = every_seconds, _steps_between()
        self.stop, self.say = stop, say
        self._good: int | None = None  # the step of the newest checkpoint known to be whole
        self._saved, self._cost = time.monotonic(), 0.0

    def load(self) -> TrainingState | None:
        """Return the newest undamaged state, or None; `say` is told what was passed over, and why."""
        damaged = []
        found = None
        for step in sorted(self._steps(), reverse=True):
            try:
                found = self._read(step)
                break
            except (OSError, ValueError) as error:
                damaged.append(f"checkpoint {str(self._file(step))!r} {error}")
        if damaged:
            place = "the beginning" if found is None else f"step {found.step}"
            self.say(f"{'; '.join(damaged)}: {self.label} goes on from {place}")
        self._good = None if found is None else found.step
        self._saved = time.monotonic()
        return found

    def save(self, state: TrainingState) -> None:
        """Write a state; the one before is kept, older ones go when this one is safely on the disk."""
        if state.step == self._good:
            return  # the same state, and rewriting it would leave a moment without it
        started = time.monotonic()
        content = save(_packed(state), metadata={"format": "pt"})
        write_bytes(self._file(state.step), content)
        write_bytes(self._sum_file(state.step), hashlib.sha256(content).hexdigest().encode())
        self._remove_others(state.step)
        self._good, self._saved = state.step, time.monotonic()
        self._cost = self._saved - started

    def due(self, step: int) -> bool:
        """Return whether to save after this many steps."""
        kill_point(f"{self.label}/step{step}")
        if self.every_steps is not None:
            return step % self.every_steps == 0
        wait = max(self.every_seconds, self._cost / LARGEST_SHARE)
        return time.monotonic() - self._saved >= wait

    def stopping(self) -> bool:
        """Return whether to save and stop now."""
        return self.stop()

    def remove(self) -> None:
        """Remove everything: the training is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, step: int) -> Path:
        return self.folder / f"step{step}{ENDING}"

    def _sum_file(self, step: int) -> Path:
        return self.folder / f"step{step}{SUM_ENDING}"

    def _steps(self) -> list[int]:
        """Return the steps of all checkpoints there are, whole or not."""
        names = [one.stem.removeprefix("step") for one in self.folder.glob(f"step*{ENDING}")]
        return [int(name) for name in names if name.isdecimal()]

    def _read(self, step: int) -> TrainingState:
        """Read one checkpoint; ValueError says what is wrong with it."""
        content = self._file(step).read_bytes()
        try:
            wanted = self._sum_file(step).read_bytes()
        except FileNotFoundError:
            raise ValueError("was not finished (it has no sha256)") from None
        if hashlib.sha256(content).hexdigest().encode() != wanted:
            raise ValueError("is damaged (its sha256 differs)")
        state = _unpacked(load(content))
        if state.step != step:
            raise ValueError(f"is of step {state.step}")
        return state

    def _remove_others(self, newest: int) -> None:
        """Remove what is neither the newest checkpoint nor the whole one before it.

        Before the first one of this process no other is known to be whole: older ones stay.
        """
        kept = {newest, *([] if self._good is None else [self._good])}
        for step in self._steps():
            if step not in kept and (self._good is not None or step > newest):
                self._file(step).unlink(missing_ok=True)
                self._sum_file(step).unlink(missing_ok=True)


def _steps_between() -> int | None:
    """Read TORCHDOCTOR_CHECKPOINT_STEPS; None where it is not set."""
    given = os.environ.get(STEPS_VARIABLE)
    if not given:
        return None
    if not given.isdecimal() or int(given) < 1:
        raise InputError(f"{STEPS_VARIABLE} is {given!r}; expected a number of steps, 1 or more")
    return int(given)


def _packed(state: TrainingState) -> dict[str, Tensor]:
    """Return a state as tensors alone: what is none as the bytes of its JSON, which keeps floats exactly."""
    rest: Mapping[str, Any] = {"step": state.step, "seconds": state.seconds, "numbers": state.numbers}
    text = torch.frombuffer(bytearray(json.dumps(rest).encode()), dtype=torch.uint8)
    tensors = {name: one.detach().cpu().contiguous().clone() for name, one in state.tensors.items()}
    return {**tensors, NUMBERS: text}


def _unpacked(tensors: dict[str, Tensor]) -> TrainingState:
    """Return the state that `_packed` made tensors of."""
    rest = json.loads(tensors.pop(NUMBERS).numpy().tobytes())
    return TrainingState(rest["step"], tensors, rest["numbers"], rest["seconds"])
