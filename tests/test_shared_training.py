"""Two and four processes train to the same weights as one, in whatever way they train."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torchdoctor.treatment.remedies import REMEDIES

PROGRAM = Path(__file__).parent / "shared_program.py"
NOT_ALIKE = {torch.float32: 1e-5, torch.float64: 1e-9}


def free_port():
    """Return a port that nobody listens on."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def launched(folder, count):
    """Run the program in a group of processes; return what each wrote."""
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    paths = os.pathsep.join(path for path in sys.path if path)
    group = [
        subprocess.Popen(
            [sys.executable, PROGRAM, folder], stderr=subprocess.PIPE, text=True,
            env={
                **os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1",
                "PYTHONPATH": paths,
            },
        )
        for rank in range(count)
    ]  # fmt: skip
    errors = [process.communicate(timeout=600)[1] for process in group]
    assert [process.returncode for process in group] == [0] * count, "\n".join(errors)
    return [torch.load(Path(folder) / f"{count}-{rank}.pt") for rank in range(count)]


def distance(one, other):
    """Return the largest difference between tensors of the same names, relative to the largest value."""
    assert one.keys() == other.keys()
    return max(
        float((one[name] - value).abs().max() / value.abs().max().clamp(min=1))
        for name, value in other.items()
    )


@pytest.mark.slow
def test_processes_end_with_the_weights_of_one(tmp_path):
    pytest.importorskip("accelerate")
    (alone,) = launched(tmp_path, 1)
    assert {f"cure {name}" for name in REMEDIES} <= set(alone)
    for count in (2, 4):
        results = launched(tmp_path, count)
        for name, (wanted, skipped) in alone.items():
            kind = torch.float32 if "float32" in name else torch.float64
            for found, found_skipped in (each[name] for each in results):
                assert distance(found, wanted) < NOT_ALIKE[kind], (count, name)
                assert found_skipped == skipped
                assert distance(found, results[0][name][0]) == 0, (count, name)
        assert [list(ids) for ids in alone["own spoiled"][1]] == [list(range(7, 14))]
