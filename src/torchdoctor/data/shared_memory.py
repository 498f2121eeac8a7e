"""Whether loading processes have the shared memory that they hand their batches over in."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

from torchdoctor.processes import processes_here

SHARED_MEMORY = Path("/dev/shm")
BATCHES_AHEAD = 2  # batches that a loading process of torch's DataLoader prepares


def workers_that_fit(workers: int, batch_bytes: int) -> int:
    """Return the number of loading processes, or 0 with a warning where the shared memory is too small.

    A process that finds no room for its batch there dies or waits forever.

    Args:
        workers: How many loading processes are wanted.
        batch_bytes: The size of the largest batch.

    Returns:
        `workers` or 0.
    """
    if workers == 0 or not SHARED_MEMORY.is_dir():
        return workers
    workers_here = processes_here() * workers  # launched processes load at the same time
    needed, free = BATCHES_AHEAD * workers_here * batch_bytes, shutil.disk_usage(SHARED_MEMORY).free
    if needed <= free:
        return workers
    warnings.warn(
        f"{workers_here} loading processes need {needed / 1e6:.0f} MB of shared memory and {SHARED_MEMORY} "
        f"has {free / 1e6:.0f} MB free: images are loaded without them. Give more shared memory (docker run "
        "--shm-size=1g), smaller batches, or --workers 0",
        stacklevel=2,
    )
    return 0
