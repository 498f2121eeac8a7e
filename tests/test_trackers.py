"""What other tools read of a treatment."""

from __future__ import annotations

import csv

from torchdoctor.engine.trackers import write_history
from torchdoctor.types import Arm, Treatment


def test_the_history_is_a_table_with_blanks_and_exact_numbers(tmp_path):
    first = ({"epoch": 0.0, "loss": 0.1 + 0.2}, {"epoch": 1.0, "loss": 1e-17})
    second = ({"epoch": 0.0, "loss": 2.0, "channel": 0.5, "validation_accuracy": 50.0},)
    control, treated = Arm("control", 0, {}, first, 4, 1.0), Arm("a,b", 1, {}, second, 2, 1.0)
    write_history(tmp_path, Treatment((control, treated), ()))
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert list(rows[0]) == ["arm", "seed", "epoch", "loss", "channel", "validation_accuracy"]
    assert [row["epoch"] for row in rows] == ["0", "1", "0"] and rows[2]["arm"] == "a,b"
    assert float(rows[0]["loss"]) == 0.1 + 0.2 and float(rows[1]["loss"]) == 1e-17
    assert rows[0]["channel"] == "" and rows[2]["channel"] == "0.5"
