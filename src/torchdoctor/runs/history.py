"""Write the training history of every arm for other tools: CSV, event files of TensorBoard, trackers."""

from __future__ import annotations

import csv
import io
from importlib.util import find_spec
from pathlib import Path

from torchdoctor.files.writing import write_bytes
from torchdoctor.treatment.result import Arm, Treatment
from torchdoctor.types import InputError, Tracker

EVENTS = "events.out.tfevents.0"  # TensorBoard knows its files by "tfevents" in their names
EXTRAS = {"tensorboard": "'torchdoctor[tensorboard]'", "accelerate": "'torchdoctor[distributed]'"}


def check_trackers(tensorboard: bool, tracker: Tracker) -> None:
    """Refuse a tracker whose packages are missing.

    Args:
        tensorboard: Whether event files are wanted.
        tracker: The tracker that is wanted.

    Raises:
        InputError: A package that it needs is not installed.
    """
    wanted: dict[str, tuple[str, ...]] = {"--tensorboard": ("tensorboard",)} if tensorboard else {}
    if tracker == "tensorboard":
        wanted["--tracker tensorboard"] = ("tensorboard",)
    elif tracker != "none":
        wanted[f"--tracker {tracker}"] = (tracker, "accelerate")
    for flag, packages in wanted.items():
        for package in packages:
            if find_spec(package) is None:
                way = EXTRAS.get(package, package)
                raise InputError(
                    f"{flag} needs the package {package}, which is not installed: pip install {way}, or "
                    "leave the flag out (history.csv holds the same numbers)"
                )


def write_trackers(
    folder: Path, treatment: Treatment, *, tensorboard: bool, tracker: Tracker = "none"
) -> None:
    """Write the histories as a table and, where wanted, for other programs.

    Args:
        folder: Where `history.csv` goes, and the folder `tensorboard` with a folder for each arm and seed.
        treatment: The trained arms.
        tensorboard: Whether event files are wanted.
        tracker: The tracker that gets the histories too.
    """
    write_history(folder, treatment)
    for arm in treatment.arms if tensorboard or tracker == "tensorboard" else ():
        write_bytes(folder / "tensorboard" / f"{arm.name}-seed{arm.seed}" / EVENTS, events_of(arm))
    if tracker not in ("none", "tensorboard"):
        for arm in treatment.arms:
            _send(arm, f"{folder.name}/{arm.name}-seed{arm.seed}", tracker)


def _send(arm: Arm, name: str, tracker: Tracker) -> None:
    """Send an arm's history to a tracker, as a run of the project `torchdoctor`, through accelerate."""
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()
    run = LOGGER_TYPE_TO_CLASS[tracker](
        "torchdoctor", **{"run_name" if tracker == "mlflow" else "name": name}
    )
    run.start()
    run.store_init_configuration({"arm": arm.name, "seed": arm.seed})
    for epoch in arm.history:
        run.log({term: value for term, value in epoch.items() if term != "epoch"}, step=int(epoch["epoch"]))
    run.finish()


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
