"""Write the history of every arm where other tools can read it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from torchdoctor.engine.storage import write_bytes
from torchdoctor.types import Treatment


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
