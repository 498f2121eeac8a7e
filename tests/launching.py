"""Start several processes that work together, as a launcher does, each with its own output."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torchdoctor


def free_port():
    """Return a port of this machine that nobody uses."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def together(count, words, *, cwd=None, of_rank=None, within=900):
    """Run `python WORDS` in several processes; return (exit code, stdout, stderr) of each.

    `of_rank` holds further environment variables by rank.
    """
    return ended(start(count, words, cwd=cwd, of_rank=of_rank), within)


def start(count, words, *, cwd=None, of_rank=None):
    """Start `python WORDS` in several processes and return them."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=cwd, env=environment(count, rank, port) | (of_rank or {}).get(rank, {}),
        )
        for rank in range(count)
    ]  # fmt: skip


def ended(processes, within=900):
    """Wait for processes; return (exit code, stdout, stderr) of each."""
    texts = [process.communicate(timeout=within) for process in processes]
    return [(process.returncode, *said) for process, said in zip(processes, texts, strict=True)]


def environment(count=1, rank=0, port=0):
    """Return the environment of a launched process; of one that nobody launched for a count of 1."""
    launched = {} if count == 1 else {
        "WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    source = str(Path(torchdoctor.__file__).parents[1])
    alike = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": source}
    return {**os.environ, **alike, **launched}
