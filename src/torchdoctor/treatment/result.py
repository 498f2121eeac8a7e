"""The result of a treatment: the trained arms and their constraints."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from torchdoctor.display.cards import Card, listed
from torchdoctor.display.counts import count_of
from torchdoctor.display.curves import history_curves
from torchdoctor.files.reading import Number, Record, read_record, read_tensors, sha256_of
from torchdoctor.files.writing import weights_bytes, write_bytes, write_json
from torchdoctor.types import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HISTORY, WEIGHTS, CARD, PRESCRIPTION = "history.json", "model.safetensors", "model.json", "prescription.json"


@dataclass(frozen=True)
class Arm:
    """A network that was trained further: the control, or under a remedy.

    Attributes:
        name: The name of the arm.
        seed: The number of the repetition, from 0.
        state: The trained weights, as `state_dict` returns them.
        history: For each epoch its number and the mean of each term of the loss, by name.
        steps: The number of steps.
        seconds: How long the training took.
        skipped: The ids of the images of each batch whose loss or gradient was not finite: no step was taken.
        passes: How often loss and gradient were computed: more than `steps` where a step takes several
            passes; 0: not known.
        facts: What the remedy measured or chose, in the order in which it did.
    """

    name: str
    seed: int
    state: Mapping[str, Tensor]
    history: tuple[Mapping[str, float], ...]
    steps: int
    seconds: float
    skipped: tuple[tuple[int, ...], ...] = ()
    passes: int = 0
    facts: tuple[Mapping[str, object], ...] = ()

    def __repr__(self) -> str:
        """Return a single line without the weights."""
        return (
            f"Arm({self.name!r}, seed {self.seed}: {count_of(len(self.history), 'epoch')}, "
            f"{count_of(self.steps, 'step')}, "
            f"{self.seconds:.1f} s, {len(self.state)} tensors)"
        )

    def save(self, folder: str | os.PathLike[str], *, card: Mapping[str, object] | None = None) -> None:
        """Write the arm: how its training went, the card, and last the weights, which say it is finished.

        Args:
            folder: The arm's own folder; made where it is missing.
            card: What `model.json` says about the network, so that the weights can be loaded without the
                run; without it the file is not written.

        Raises:
            ModelDoctorError: Where a file cannot be written.
        """
        home, content = Path(folder), weights_bytes(self.state)
        if card is not None:
            write_json(home / CARD, card)
        record = {
            "epochs": [{name: _as_json(value) for name, value in epoch.items()} for epoch in self.history],
            "steps": self.steps,
            "seconds": self.seconds,
            "skipped_batches": self.skipped,
            "passes": self.passes,
            "facts": self.facts,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        write_json(home / HISTORY, record)
        write_bytes(home / WEIGHTS, content)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], name: str, seed: int) -> Arm:
        """Read an arm back that `save` or a run wrote.

        Args:
            folder: The arm's own folder, such as `RUN/treatment/treated/seed0`.
            name: The arm's name.
            seed: The arm's seed.

        Returns:
            The arm.

        Raises:
            InputError: Where a file is missing, of another kind, or not what was written.
        """
        record = read_record(Path(folder) / HISTORY, HistoryRecord)
        file = Path(folder) / WEIGHTS
        if not file.is_file() or sha256_of(file) != record.sha256:
            raise InputError(f"{str(file)!r} is missing or damaged (its sha256 differs)")
        state = read_tensors(file)
        return cls(
            name, seed, state, record.epochs, record.steps, record.seconds, record.skipped_batches,
            record.passes, record.facts,
        )  # fmt: skip


@dataclass(frozen=True)
class Treatment:
    """The result of `treat`: the trained networks, and the weights of the constraints.

    Attributes:
        arms: All arms of all repetitions.
        prescription: For each constraint its weight and what was measured of it, by name (see `prescribe`).
    """

    arms: tuple[Arm, ...]
    prescription: tuple[Mapping[str, object], ...]

    def names(self) -> tuple[str, ...]:
        """List the names of the arms.

        Returns:
            Each name once, in the order in which the arms were trained.
        """
        return tuple(dict.fromkeys(arm.name for arm in self.arms))

    def seeds(self) -> tuple[int, ...]:
        """List the numbers of the repetitions.

        Returns:
            Each number once, in the order in which the arms were trained.
        """
        return tuple(dict.fromkeys(arm.seed for arm in self.arms))

    def arm(self, name: str, seed: int) -> Arm:
        """Return an arm.

        Args:
            name: The name of the arm.
            seed: The number of the repetition.

        Returns:
            The arm.

        Raises:
            KeyError: There is no such arm; the text lists those that exist.
        """
        for arm in self.arms:
            if arm.name == name and arm.seed == seed:
                return arm
        raise KeyError(
            f"no arm {name!r} with seed {seed}; there are {[(arm.name, arm.seed) for arm in self.arms]}"
        )

    def __repr__(self) -> str:
        """Return a few lines: each arm's length and last numbers, each constraint's weight."""
        return self._card().text()

    def _repr_html_(self) -> str:
        """Return the same as an HTML table, which notebooks show."""
        return self._card().html()

    def _card(self) -> Card:
        """Summarise the treatment."""
        terms = [term for term in ("loss", "validation_accuracy") if term in self._terms()]
        lines = [_sentence(constraint) for constraint in self.prescription[:4]]
        rows = []
        for arm in self.arms:
            last = arm.history[-1] if arm.history else {}
            numbers = [f"{last[term]:.4g}" if term in last else "-" for term in terms]
            rows.append((arm.name, str(arm.seed), str(arm.steps), f"{arm.seconds:.1f}", *numbers))
        names, seeds = self.names(), self.seeds()
        counted = count_of(len(seeds), "seed")
        return Card(
            f"Treatment with {count_of(len(names), 'arm')} ({listed(names)}) and {counted}",
            tuple(lines),
            ("arm", "seed", "steps", "seconds", *(f"last {term.replace('_', ' ')}" for term in terms)),
            tuple(rows),
        )

    def _terms(self) -> tuple[str, ...]:
        """Return the names of the numbers that the histories hold."""
        names = (name for arm in self.arms for epoch in arm.history for name in epoch if name != "epoch")
        return tuple(dict.fromkeys(names))

    def history_figure(self, term: str = "loss") -> Figure:
        """Draw the course of a number over the epochs of all trainings.

        Args:
            term: The name of the number in the histories: "loss", "validation_accuracy", a constraint's name.

        Returns:
            A matplotlib figure with a line for each arm and seed; all seeds of an arm have its colour.

        Raises:
            InputError: Where no history holds such a number.
        """
        if term not in self._terms():
            raise InputError(f"no history holds {term!r}; they hold: {', '.join(self._terms()) or 'nothing'}")
        histories = {name: [arm.history for arm in self.arms if arm.name == name] for name in self.names()}
        return history_curves(histories, term)

    def save(self, folder: str | os.PathLike[str], *, card: Mapping[str, object] | None = None) -> None:
        """Write every arm into a folder of its own (`ARM/seedN`), and `prescription.json`.

        Args:
            folder: Where to write them; made where it is missing.
            card: What the `model.json` of every arm says about the network; without it none is written.

        Raises:
            InputError: Where an arm's name cannot be the name of a folder.
            ModelDoctorError: Where a file cannot be written.
        """
        for name in self.names():
            if not name or Path(name).name != name or name == ".." or set(name) & {"\\", "\0"}:
                raise InputError(f"arm {name!r} cannot be saved: its name cannot be the name of a folder")
        for arm in self.arms:
            arm.save(Path(folder) / arm.name / f"seed{arm.seed}", card=card)
        self.save_prescription(folder)

    def save_prescription(self, folder: str | os.PathLike[str]) -> None:
        """Write `prescription.json` alone, where the arms were written as they ended.

        Args:
            folder: The folder of the arms.

        Raises:
            ModelDoctorError: Where the file cannot be written.
        """
        record = {"constraints": self.prescription, "arms": list(self.names())}
        write_json(Path(folder) / PRESCRIPTION, record)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Treatment:
        """Read a treatment back that `save` or a run wrote.

        Args:
            folder: The folder of the arms, such as `RUN/treatment`.

        Returns:
            The treatment, its arms by seed and then in the order in which they were run.

        Raises:
            InputError: Where there is no arm, or a file is missing, damaged or of another kind.
        """
        home = Path(folder)
        if not home.is_dir():
            raise InputError(f"{str(home.parent)!r} holds no treatment: give a run of treat or checkup")
        record = read_record(home / PRESCRIPTION, PrescriptionRecord)
        places = []
        for place in home.glob("*/seed*"):
            if re.fullmatch(r"seed\d+", place.name):
                name, seed = place.parent.name, int(place.name.removeprefix("seed"))
                if name not in record.arms:
                    raise InputError(
                        f"{str(home / PRESCRIPTION)!r} names the arms {', '.join(record.arms)}; there is a "
                        f"folder of another one, {name!r}"
                    )
                places.append((seed, record.arms.index(name), name, place))
        arms = tuple(Arm.load(place, name, seed) for seed, _, name, place in sorted(places))
        if not arms:
            raise InputError(f"{str(home)!r} holds no arm: run treat first")
        return cls(arms, record.constraints)


class HistoryRecord(Record):
    """What an arm's `history.json` holds: the fields of an `Arm` but its weights, and their sha256."""

    epochs: tuple[dict[str, Number], ...]
    steps: int
    seconds: float
    skipped_batches: tuple[tuple[int, ...], ...]
    passes: int = 0
    facts: tuple[dict[str, Any], ...] = ()
    sha256: str


class PrescriptionRecord(Record):
    """What `prescription.json` holds: `Treatment.prescription`, and the names of the arms in their order."""

    constraints: tuple[dict[str, Any], ...]
    arms: tuple[str, ...]


def _as_json(value: float) -> float | str | None:
    """Return a number as JSON can hold it, so that it is read back as it was."""
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return None if math.isnan(value) else value


def _sentence(constraint: Mapping[str, object]) -> str:
    """Say the layers and the weight of a constraint."""
    layers, weight = constraint.get("layers"), constraint.get("weight")
    where = listed([str(layer) for layer in layers]) if isinstance(layers, list) else "-"
    weighed = f"{weight:.4g}" if isinstance(weight, float) else str(weight)
    return f"constraint {constraint.get('constraint')} at {where}, weight {weighed}"
