"""Several processes exchange values and share work; one process is one of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launching import together
from torchdoctor.images.batches import Batch
from torchdoctor.processes import ALONE, Processes, launched
from torchdoctor.runs.checkpoints import CheckpointFolder
from torchdoctor.treatment.recipe import Recipe
from torchdoctor.treatment.training import fit
from torchdoctor.types import Interrupted

PROGRAM = """
import torch
from torchdoctor.processes import launched
from torchdoctor.types import InputError
here = launched()

def failing(number):
    if number == 5:
        raise ValueError("five")
    return number

def refused():
    raise InputError(f"refused by {here.rank}")

said = []
failing_share = map(failing, here.share(range(7)))
for action in (lambda: list(here.in_order(failing_share)), lambda: here.by_main(refused)):
    try:
        action()
    except (ValueError, InputError) as error:
        said.append(str(error))
ordered = list(here.in_order(number * number for number in here.share(range(43))))
assert ordered == [number * number for number in range(43)]
together = (said, here.by_main(lambda: here.rank), here.main_first(lambda: here.rank))
total = torch.tensor([float(here.rank + 1)], dtype=torch.float64)
here.sum([total])
answer = (list(here.share(range(7))), here.gather({"rank": here.rank}), here.same(f"from {here.rank}"))
flags = here.any(False, here.rank == 1, True)
here.wait()
print((here.rank, here.count, here.main, *answer, total.item(), *together, flags))
here.leave()
"""


def failing(number):
    """Fail at one value."""
    if number == 5:
        raise ValueError("five")
    return number


def test_one_process_is_one_of_one():
    assert launched() == ALONE == Processes(0, 1)
    value = torch.ones(2)
    ALONE.sum([value])
    assert value.tolist() == [1, 1]
    assert list(ALONE.share("abc")) == ["a", "b", "c"]
    assert ALONE.gather(3) == [3]
    assert ALONE.same(4) == 4
    assert list(ALONE.in_order(range(3))) == [0, 1, 2]
    with pytest.raises(ValueError, match="five"):
        list(ALONE.in_order(map(failing, range(7))))
    assert ALONE.by_main(lambda: 5) == ALONE.main_first(lambda: 5) == 5
    assert ALONE.any(False, True) == (False, True)
    ALONE.leave()


@pytest.mark.slow
def test_two_processes_share_and_exchange():
    pytest.importorskip("accelerate")
    first, second = (eval(out) for _, out, _ in together(2, ["-c", PROGRAM]))
    gathered, said = [{"rank": 0}, {"rank": 1}], ["five", "refused by 0"]
    flags = (False, True, True)
    assert first == (0, 2, True, [0, 2, 4, 6], gathered, "from 0", 3.0, said, 0, 0, flags)
    assert second == (1, 2, False, [1, 3, 5], gathered, "from 0", 3.0, said, 0, 1, flags)


class Alike(Processes):
    """A process whose one companion has the same values; it counts exchanges."""

    exchanges = 0

    def sum(self, tensors):
        Alike.exchanges += 1
        for tensor in tensors:
            tensor.mul_(2)

    def gather(self, value):
        Alike.exchanges += 1
        return [value, value]

    def same(self, value):
        Alike.exchanges += 1
        return value

    @property
    def device(self):
        return torch.device("cpu")


def test_whether_to_save_or_to_stop_is_one_exchange_a_step(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHDOCTOR_CHECKPOINT_STEPS", "100")
    asked = []
    counts = {}
    for name in ("without", "with", "stopped"):
        Alike.exchanges = 0
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
        batches = [Batch(torch.randn(4, 3, 2, 2), torch.arange(4) % 2, torch.arange(4))] * 5
        stop = lambda: asked.append(1) or name == "stopped"  # noqa: B023, E731
        kept = None if name == "without" else CheckpointFolder(tmp_path / name, stop=stop)
        arguments = {"steps_per_epoch": 5, "seed": 0, "checkpoints": kept, "processes": Alike(0, 2)}
        if name == "stopped":
            with pytest.raises(Interrupted):
                fit(model, lambda _epoch, own=batches: own, Recipe(epochs=1), **arguments)
            continue
        fit(model, lambda _epoch, own=batches: own, Recipe(epochs=1), **arguments)
        counts[name] = Alike.exchanges
    assert counts["with"] - counts["without"] == 5
    assert len(asked) == 6  # once a step, and once in the step after which all stop


@pytest.mark.slow
def test_loading_is_shared_and_running_out_of_memory_ends_all_with_the_same_words():
    pytest.importorskip("accelerate")
    results = together(2, [Path(__file__).parent / "two_processes_program.py"])
    said = {out for _, out, _ in results}
    assert len(said) == 1, [err[-2000:] for _, _, err in results]
    assert (
        "process 1 ran out of memory in step 3, with 8 images in a batch (CUDA out of memory)" in said.pop()
    )
