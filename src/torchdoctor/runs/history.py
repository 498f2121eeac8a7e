"""Write the training history of every arm in formats of other tools: CSV and TensorBoard's event files."""

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
    """Refuse the wish for event files where the package that writes them is missing.

    Args:
        wanted: Whether event files are wanted.

    Raises:
        InputError: They are, and the package tensorboard is not installed.
    """
    if wanted and find_spec("tensorboard") is None:
        raise InputError(
            "--tensorboard needs the package tensorboard, which is not installed: pip install "
            "'torchdoctor[tensorboard]', or leave the flag out (history.csv holds the same numbers)"
        )


def write_trackers(folder: Path, treatment: Treatment, *, tensorboard: bool) -> None:
    """Write the histories as a table and, where wanted, as TensorBoard's event files.

    Args:
        folder: Where `history.csv` goes, and the folder `tensorboard` with a folder for each arm and seed.
        treatment: The trained arms.
        tensorboard: Whether event files are wanted.
    """
    write_history(folder, treatment)
    for arm in treatment.arms if tensorboard else ():
        write_bytes(folder / "tensorboard" / f"{arm.name}-seed{arm.seed}" / EVENTS, events_of(arm))


def write_history(folder: Path, treatment: Treatment) -> None:
    """Write `history.csv`: a line for each arm, seed and epoch, a column for each term of the loss.

    A field is blank where an arm has no such term.

    Args:
        folder: Where the file goes.
        treatment: The trained arms.
    """
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
    """Return an arm's history as the bytes of a TensorBoard event file.

    SummaryWriter is not used: it names its files after the clock, the machine and the process, and a run that
    is resumed must end with the same files. For the same reason every wall time is 0.

    Args:
        arm: The trained arm.

    Returns:
        The file's content: a scalar for each term of the loss and epoch; its step is the epoch.
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
