"""Keep trainings that were interrupted, so that a later call goes on where the time of this one ended."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torchdoctor.runs.checkpoints import CheckpointFolder
from torchdoctor.types import silent
from torchdoctor.verbs.begin import Watch
from torchdoctor.verbs.treat import ArmFolder


@dataclass(frozen=True)
class Unfinished:
    """A folder of unfinished trainings, and who may ask them to save and stop."""

    folder: Path
    stop: Callable[[], bool]

    def checkpoints(self) -> CheckpointFolder:
        """Return the states of one training."""
        return CheckpointFolder(self.folder, stop=self.stop, say=_say)

    def arms(self) -> ArmFolder:
        """Return the arms of one treatment: finished ones, and the states of the one under way."""
        return ArmFolder(self.folder, {}, Watch(silent, self.stop, _say))

    def remove(self) -> None:
        """Remove everything: the ledger has the results."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _say(text: str) -> None:
    print(text, flush=True)
