"""Know which of several processes this is, and exchange values with the others.

A launcher (`accelerate launch`, `torchrun`) starts the same command several times. All processes take the
same decisions; each computes a share of the batches, and all get the results of all. This is the one module
that knows about processes; accelerate and torch.distributed do the work.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import TypeVar

from torch import Tensor

from torchdoctor.types import InputError

Value = TypeVar("Value")


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

        return list(gather_object([value]))

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
        broadcast_object_list(values, from_process=0)
        return values[0]

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all processes; each must call this.

        Args:
            tensors: Tensors of the same shapes and types in every process; changed in place.
        """
        if self.alone:
            return
        from torch import distributed

        for tensor in tensors:
            distributed.all_reduce(tensor)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if not self.alone:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


ALONE = Processes()


@cache
def launched() -> Processes:
    """Return the processes that a launcher started, and connect to them; one process where none did.

    Returns:
        The processes.

    Raises:
        InputError: A launcher started several, and accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ALONE
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise InputError(
            "several processes were launched, and accelerate, which connects them, is not installed: "
            "pip install 'torchdoctor[distributed]'"
        ) from error
    import torch

    state = PartialState(cpu=not torch.cuda.is_available())
    return Processes(state.process_index, state.num_processes)
