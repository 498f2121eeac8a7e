"""Know which of several processes this is, and exchange values with the others.

A launcher (`accelerate launch`, `torchrun`) starts the same command several times. All processes take the
same decisions; each computes a share of the batches, and all get the results of all. This is the one module
that knows about processes; accelerate and torch.distributed do the work.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from textwrap import shorten
from typing import TypeVar

import torch
from torch import Tensor

from torchdoctor.types import InputError, ModelDoctorError, first_line

Value = TypeVar("Value")

WORD = "torchdoctor/ended"  # under this name a process that ends leaves word why
PATIENCE = 2.0  # seconds for which it then waits until the others have read it
AT_ONCE = 16  # results of a share that a process hands to the others in one message


@contextmanager
def _others_there() -> Iterator[None]:
    """Say what it means where an exchange fails: another process is gone, and may have left word why."""
    try:
        yield
    except RuntimeError as error:
        word = _word_left()
        raise word or LostProcessError(
            f"another of the processes has ended ({shorten(first_line(error), 100)}). What was written is "
            "whole: go on with --resume"
        ) from error


class LostProcessError(ModelDoctorError):
    """A process that works on the same run has ended, so the others cannot go on."""


@dataclass(frozen=True)
class Processes:
    """The processes that work on the same run.

    Attributes:
        rank: The number of this process, from 0.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes the run folder and speaks."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.count == 1

    def share(self, values: Iterable[Value]) -> Iterator[Value]:
        """Yield the values that this process works on: every `count`-th, from the `rank`-th on.

        Args:
            values: The same values in the same order in every process, such as batches.

        Yields:
            Its share.
        """
        yield from islice(values, self.rank, None, self.count)

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes; each must call this.

        Args:
            value: The value of this process, which can be pickled.

        Returns:
            The values by rank, the same list in every process.
        """
        if self.alone:
            return [value]
        from accelerate.utils import gather_object

        with _others_there():
            return list(gather_object([value]))

    def in_order(self, results: Iterable[Value]) -> Iterator[Value]:
        """Yield what all processes computed of their shares, in the order of a single process.

        Each process must use it up. An error of one process is raised in all of them.

        Args:
            results: What this process computes of its `share`, one for each value; they can be pickled.

        Yields:
            The results of all processes, the same in every process.

        Raises:
            Exception: What a process raised while it computed its results.
        """
        if self.alone:
            yield from results
            return
        mine = iter(results)
        while True:
            chunk: list[Value] = []
            error: Exception | None = None
            try:
                chunk.extend(islice(mine, AT_ONCE))
            except Exception as raised:
                error = raised
            chunks = self._chunks(chunk, error)
            for place in range(max(map(len, chunks))):
                yield from (chunk[place] for chunk in chunks if place < len(chunk))
            if all(len(chunk) < AT_ONCE for chunk in chunks):
                return

    def _chunks(self, chunk: list[Value], error: Exception | None) -> list[list[Value]]:
        """Return the results of all processes; raise the first error of any."""
        gathered = self.gather((chunk, None if error is None else _portable(error)))
        for raised in (raised for _, raised in gathered if raised is not None):
            raise raised from error
        return [results for results, _ in gathered]

    def same(self, value: Value) -> Value:
        """Return the main process's value, so that all take the same decision; each must call this.

        Args:
            value: The value of this process, which can be pickled.

        Returns:
            The value of the main process.
        """
        if self.alone:
            return value
        from accelerate.utils import broadcast_object_list

        values = [value]
        with _others_there():
            broadcast_object_list(values, from_process=0)
        return values[0]

    def by_main(self, compute: Callable[[], Value]) -> Value:
        """Let the main process alone compute a value, and return it; each must call this.

        Args:
            compute: Called in the main process; its value can be pickled.

        Returns:
            The value, the same in every process.

        Raises:
            ModelDoctorError: What the main process raised, in every process.
        """
        if self.alone:
            return compute()
        error: ModelDoctorError | None = None
        value: Value | None = None
        if self.main:
            try:
                value = compute()
            except ModelDoctorError as raised:
                error = raised
        value, error = self.same((value, error))
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    def main_first(self, compute: Callable[[], Value]) -> Value:
        """Compute a value in every process, in the main process before the others; each must call this.

        Args:
            compute: What leaves files that the others then read, such as a download.

        Returns:
            The value of this process.

        Raises:
            ModelDoctorError: What the main process raised, in every process.
        """
        values: list[Value] = []
        self.by_main(lambda: values.append(compute()))
        return values[0] if values else compute()

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Tell of each flag whether it is set in any process; each must call this.

        Args:
            flags: The flags of this process; as many in every process.

        Returns:
            The flags, the same in every process.
        """
        if self.alone:
            return flags
        counts = torch.tensor(flags, dtype=torch.int32, device=self.device)
        self.sum([counts])
        return tuple(bool(count) for count in counts.tolist())

    @property
    def device(self) -> torch.device:
        """Where this process computes: on a GPU of its own, else on the CPU."""
        if self.alone:
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        from accelerate import PartialState

        return PartialState().device

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all processes; each must call this.

        Args:
            tensors: Tensors of the same shapes and types in every process; changed in place.
        """
        if self.alone:
            return
        from torch import distributed

        with _others_there():
            for tensor in tensors:
                distributed.all_reduce(tensor)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if not self.alone:
            from accelerate import PartialState

            with _others_there():
                PartialState().wait_for_everyone()

    def leave(self) -> None:
        """Wait for the others and end the connection to them."""
        if not self.alone:
            from accelerate import PartialState

            self.wait()
            PartialState().destroy_process_group()

    def end_all(self, error: ModelDoctorError) -> ModelDoctorError:
        """Let all processes end with an error that this one alone has met, in the middle of a step.

        The others wait for its part of an exchange, which fails, and they read why. On GPUs, where no
        exchange can be given up, the launcher ends them.

        Args:
            error: What this process is about to raise.

        Returns:
            The same error.
        """
        if not self.alone:
            from torch import distributed

            store = distributed.distributed_c10d._get_default_store()
            store.set(WORD, pickle.dumps(_portable(error)))  # type: ignore[arg-type]  # takes bytes, too
            if distributed.get_backend() == "gloo":
                distributed.destroy_process_group()
                time.sleep(PATIENCE)  # the store of the word may be kept by this process
        return error


ALONE = Processes()


def _word_left() -> Exception | None:
    """Return the error that another process has left word of; None where none has."""
    from torch import distributed

    try:
        store = distributed.distributed_c10d._get_default_store()
        return pickle.loads(store.get(WORD)) if store.check([WORD]) else None
    except (RuntimeError, ValueError):  # the process that keeps the store is gone
        return None


def _portable(error: Exception) -> Exception:
    """Return an error that can be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error of other people's code, whose class says nothing about pickling
        return ModelDoctorError(f"{type(error).__name__}: {first_line(error)}")
    return error


def rank_by_launcher() -> int:
    """Return which of the launched processes this is, without a connection to the others.

    Returns:
        Its number, from 0; 0 where a single process was launched.
    """
    return int(os.environ.get("RANK", "0")) if _launched_count() > 1 else 0


def processes_here() -> int:
    """Return how many processes a launcher started on this machine.

    Returns:
        Their number; 1 where a single process was launched.
    """
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _launched_count() > 1 else 1


def connected() -> Processes:
    """Return the launched processes where this one has connected to them, else itself alone.

    Returns:
        The processes.
    """
    return launched() if launched.cache_info().currsize else ALONE


def _launched_count() -> int:
    """Return how many processes a launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@cache
def launched() -> Processes:
    """Return the processes that a launcher started, and connect to them; one process where none did.

    Returns:
        The processes.

    Raises:
        InputError: A launcher started several, and accelerate is not installed.
    """
    if _launched_count() < 2:
        return ALONE
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise InputError(
            "several processes were launched, and accelerate, which connects them, is not installed: "
            "pip install 'torchdoctor[distributed]'"
        ) from error
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    state = PartialState(cpu=on_cpu or not torch.cuda.is_available())
    return Processes(state.process_index, state.num_processes)
