"""Several processes exchange values and share work; one process is one of one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from torchdoctor.processes import ALONE, Processes, launched

PROGRAM = """
import torch
from torchdoctor.processes import launched
here = launched()
total = torch.tensor([float(here.rank + 1)], dtype=torch.float64)
here.sum([total])
answer = (list(here.share(range(7))), here.gather({"rank": here.rank}), here.same(f"from {here.rank}"))
here.wait()
print((here.rank, here.count, here.main, *answer, total.item()))
"""


def run(count: int, port: int) -> list[str]:
    """Run the program in several processes; return what each prints."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True,
            env={
                **os.environ, "WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(count)
    ]  # fmt: skip
    return [process.communicate(timeout=120)[0].strip() for process in processes]


def test_one_process_is_one_of_one():
    assert launched() == ALONE == Processes(0, 1)
    value = torch.ones(2)
    ALONE.sum([value])
    assert value.tolist() == [1, 1]
    assert list(ALONE.share("abc")) == ["a", "b", "c"]
    assert ALONE.gather(3) == [3]
    assert ALONE.same(4) == 4


@pytest.mark.slow
def test_two_processes_share_and_exchange():
    pytest.importorskip("accelerate")
    first, second = (eval(line) for line in run(2, 29517))
    gathered = [{"rank": 0}, {"rank": 1}]
    assert first == (0, 2, True, [0, 2, 4, 6], gathered, "from 0", 3.0)
    assert second == (1, 2, False, [1, 3, 5], gathered, "from 0", 3.0)
