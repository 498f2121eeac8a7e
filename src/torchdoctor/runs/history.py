"""Write the history of every arm where other tools can read it: a table, and TensorBoard's event files."""

from __future__ import annotations

import csv
import io
from importlib.util import find_spec
from pathlib import Path

from torchdoctor.files.writing import write_bytes
from torchdoctor.treatment.result import Arm, Treatment
from torchdoctor.types import InputError

EVENTS = "events.out.tfevents.0"  # TensorBoard knows its files by "tfevents" in their names


def check_tensorboard(wanted: bool) -> None:
    """Raise InputError where event files are wanted and TensorBoard, which knows their format, is missing."""
    if wanted and find_spec("tensorboard") is None:
        raise InputError(
            "--tensorboard needs the package tensorboard, which is not installed: pip install "
            "'torchdoctor[tensorboard]', or leave the flag out (history.csv holds the same numbers)"
        )


def write_trackers(folder: Path, treatment: Treatment, *, tensorboard: bool) -> None:
    """Write the histories as a table and, where wanted, as TensorBoard's event files."""
    write_history(folder, treatment)
    for arm in treatment.arms if tensorboard else ():
        write_bytes(folder / "tensorboard" / f"{arm.name}-seed{arm.seed}" / EVENTS, events_of(arm))


def write_history(folder: Path, treatment: Treatment) -> None:
    """Write `history.csv`: a line per arm, seed and epoch, a column per term; blank where there is none."""
    names = dict.fromkeys(name for arm in treatment.arms for epoch in arm.history for name in epoch)
    columns = ["arm", "seed", "epoch", *(name for name in names if name != "epoch")]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for arm in treatment.arms:
        for epoch in arm.history:
            writer.writerow({"arm": arm.name, "seed": arm.seed, **epoch, "epoch": int(epoch["epoch"])})
    write_bytes(folder / "history.csv", text.getvalue().encode())


def events_of(arm: Arm) -> bytes:
    """Return an arm's history as a TensorBoard event file: a scalar per term, its step the epoch.

    Not by SummaryWriter, whose files are named after the clock, the machine and the process: a run that
    goes on must end with the same files. For the same reason every wall time is 0.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter
    from torch.utils.tensorboard.summary import scalar

    content = io.BytesIO()
    writer = RecordWriter(content)
    writer.write(Event(wall_time=0, file_version="brain.Event:2").SerializeToString())
    for epoch in arm.history:
        for name, value in epoch.items():
            if name != "epoch":
                event = Event(wall_time=0, step=int(epoch["epoch"]), summary=scalar(name, value))
                writer.write(event.SerializeToString())
    return content.getvalue()
