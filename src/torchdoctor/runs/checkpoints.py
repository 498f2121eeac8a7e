"""Keep the state of an unfinished training in files, so that it can be resumed with exactly the same result.

Each state is a safetensors file. Its sha256 stands in a small file beside it, which is written last. The
newest two states are kept: where the newest is damaged, the training goes on from the state before.
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
LARGEST_SHARE = 0.05  # of a training's time that saving may take: where it is slow, it is done less often
NUMBERS = "__numbers__"  # the tensor that holds the JSON of what is no tensor
ENDING, SUM_ENDING = ".safetensors", ".sha256"


class CheckpointFolder:
    """The checkpoints of a training, in a folder of their own."""

    def __init__(
        self,
        folder: Path,
        *,
        label: str = "",
        every_seconds: float = EVERY_SECONDS,
        stop: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """Use a folder for the checkpoints of a training.

        Args:
            folder: The folder; it is made with the first checkpoint.
            label: The training's name in kill points and messages, such as `control/seed0`; by default the
                folder's name.
            every_seconds: Seconds between two checkpoints, unless the environment variable
                TORCHDOCTOR_CHECKPOINT_STEPS holds a number of steps.
            stop: Returns whether this process was asked to save and stop.
            say: Receives a sentence where a checkpoint is damaged.

        Raises:
            InputError: TORCHDOCTOR_CHECKPOINT_STEPS holds no whole number above 0.
        """
        self.folder, self.label = folder, label or folder.name
        self.every_seconds, self.every_steps = every_seconds, _steps_between()
        self.stop, self.say = stop, say
        self._newest_whole: int | None = None  # the step of the newest checkpoint known to be whole
        self._saved, self._cost = time.monotonic(), 0.0
        self._asked: bool | None = None  # whether somebody had asked to stop by the last call of `due`

    def load(self) -> TrainingState | None:
        """Read the newest undamaged state; damaged states are passed over and reported to `say`.

        Returns:
            The state, or None where there is none that can be read.
        """
        damaged = []
        state = None
        for step in sorted(self._steps(), reverse=True):
            try:
                state = self._read(step)
                break
            except (OSError, ValueError) as error:
                damaged.append(f"checkpoint {str(self._file(step))!r} {error}")
        if damaged:
            place = "the beginning" if state is None else f"step {state.step}"
            self.say(f"{'; '.join(damaged)}: {self.label} goes on from {place}")
        self._newest_whole = None if state is None else state.step
        self._saved = time.monotonic()
        return state

    def save(self, state: TrainingState) -> None:
        """Write a state. The state before it stays; older states are removed once this state is on the disk.

        Args:
            state: The state.

        Raises:
            ModelDoctorError: The disk is full or cannot be written.
        """
        if state.step == self._newest_whole:
            return  # the same state, and rewriting it would leave a moment without it
        started = time.monotonic()
        content = save(_packed(state), metadata={"format": "pt"})
        write_bytes(self._file(state.step), content)
        write_bytes(self._sum_file(state.step), hashlib.sha256(content).hexdigest().encode())
        self._remove_others(state.step)
        self._newest_whole, self._saved = state.step, time.monotonic()
        self._cost = self._saved - started

    def due(self, step: int) -> bool:
        """Decide whether it is time for a checkpoint, and ask whether the training is to be stopped.

        Of several processes each answers for itself; the training asks them all at once.

        Args:
            step: How many steps have been trained.

        Returns:
            True where the state is to be saved now.
        """
        kill_point(f"{self.label}/step{step}")
        self._asked = self.stop()
        if self.every_steps is not None:
            return step % self.every_steps == 0
        wait = max(self.every_seconds, self._cost / LARGEST_SHARE)
        return time.monotonic() - self._saved >= wait

    def stopping(self) -> bool:
        """Tell whether the training is to be saved and stopped.

        Returns:
            True where somebody had asked for it, for example by Ctrl-C: by the last call of `due`, if any.
        """
        return self.stop() if self._asked is None else self._asked

    def remove(self) -> None:
        """Remove the folder with all checkpoints: the training is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, step: int) -> Path:
        """Return the file of the state after a step."""
        return self.folder / f"step{step}{ENDING}"

    def _sum_file(self, step: int) -> Path:
        """Return the file of that state's sha256."""
        return self.folder / f"step{step}{SUM_ENDING}"

    def _steps(self) -> list[int]:
        """Return the steps of all checkpoints in the folder, even damaged checkpoints."""
        names = [file.stem.removeprefix("step") for file in self.folder.glob(f"step*{ENDING}")]
        return [int(name) for name in names if name.isdecimal()]

    def _read(self, step: int) -> TrainingState:
        """Read a checkpoint; ValueError says what is wrong with it."""
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
        """Remove all checkpoints but the newest and the last before it that is known to be whole.

        Where no earlier checkpoint is known to be whole (this process has neither read nor written any),
        older checkpoints stay.
        """
        stay = {newest, *([] if self._newest_whole is None else [self._newest_whole])}
        for step in self._steps():
            if step not in stay and (self._newest_whole is not None or step > newest):
                self._file(step).unlink(missing_ok=True)
                self._sum_file(step).unlink(missing_ok=True)


def _steps_between() -> int | None:
    """Read TORCHDOCTOR_CHECKPOINT_STEPS; None where it is not set."""
    text = os.environ.get(STEPS_VARIABLE)
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{STEPS_VARIABLE} is {text!r}; expected a number of steps, 1 or more")
    return int(text)


def _packed(state: TrainingState) -> dict[str, Tensor]:
    """Return a state as tensors only: everything else becomes bytes of JSON, which keeps floats exactly."""
    rest: Mapping[str, Any] = {"step": state.step, "seconds": state.seconds, "numbers": state.numbers}
    text = torch.frombuffer(bytearray(json.dumps(rest).encode()), dtype=torch.uint8)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.tensors.items()}
    return {**tensors, NUMBERS: text}


def _unpacked(tensors: dict[str, Tensor]) -> TrainingState:
    """Return the state that `_packed` turned into tensors."""
    rest = json.loads(tensors.pop(NUMBERS).numpy().tobytes())
    return TrainingState(rest["step"], tensors, rest["numbers"], rest["seconds"])
