"""The state of a training survives exactly, or the one before it does: damage, truncation, kill -9."""

from __future__ import annotations

import math
import signal

import pytest
import torch

from processes import killed_at
from torchdoctor.runs.checkpoints import CheckpointFolder
from torchdoctor.treatment.recipe import TrainingState
from torchdoctor.types import InputError, ModelDoctorError

ODD = [0.1, -0.0, 5e-324, 1.7976931348623157e308, math.nan, math.inf, -math.inf, 2**70, True, None, "ü\n"]


def state(step=7, fill=0.0, **numbers):
    """Return a small state of every kind of tensor."""
    tensors = {
        "weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(step)) + fill,
        "turned": torch.arange(12.0).view(3, 4).t(),
        "count": torch.tensor(2**60 + step),
        "double": torch.tensor([math.pi, math.nan, -0.0], dtype=torch.float64),
        "half": torch.tensor(1.0 / 3, dtype=torch.bfloat16),
        "small": torch.tensor([1.5], dtype=torch.float16),
        "mask": torch.tensor([True, False]),
        "none": torch.empty(0, 5),
    }
    return TrainingState(step, tensors, {"history": [{"loss": 0.1 + 0.2}], **numbers}, 12.25)


def bits(tensor):
    """Return a tensor's type, shape and bytes."""
    flat = tensor.detach().contiguous().reshape(-1)
    return tensor.dtype, tuple(tensor.shape), bytes(flat.view(torch.uint8).tolist())


def same(one, two):
    """Return whether two states are equal to the last bit; repr tells NaN, -0.0, 1 and 1.0 apart."""
    return (
        (one.step, one.seconds, repr(one.numbers)) == (two.step, two.seconds, repr(two.numbers))
        and list(one.tensors) == list(two.tensors)
        and all(bits(one.tensors[name]) == bits(two.tensors[name]) for name in one.tensors)
    )


def sorted_state(found):
    """Put the tensors of a state in order: files hold them in their own."""
    return TrainingState(found.step, dict(sorted(found.tensors.items())), found.numbers, found.seconds)


def names(folder):
    return sorted(one.name for one in folder.iterdir())


def test_a_state_comes_back_to_the_last_bit(tmp_path):
    given = state(odd=ODD, nested={"a": {"b": []}})
    CheckpointFolder(tmp_path / "c").save(given)
    found = CheckpointFolder(tmp_path / "c").load()
    assert same(sorted_state(found), sorted_state(given))
    found.tensors["weight"].add_(1)  # what was read can be trained on
    assert not same(sorted_state(found), sorted_state(given))


def test_no_checkpoint_is_none_and_what_json_cannot_say_is_refused(tmp_path):
    folder = CheckpointFolder(tmp_path / "c")
    assert folder.load() is None
    with pytest.raises(TypeError):
        folder.save(state(wrong=torch.tensor(1)))
    assert folder.load() is None


def test_two_are_kept(tmp_path):
    folder = CheckpointFolder(tmp_path / "c")
    for step in (5, 9, 10, 100):
        folder.save(state(step))
        folder.save(state(step))  # nothing happens
    assert names(tmp_path / "c") == [
        "step10.safetensors",
        "step10.sha256",
        "step100.safetensors",
        "step100.sha256",
    ]
    assert folder.load().step == 100
    folder.remove()
    assert not (tmp_path / "c").exists() and folder.load() is None


@pytest.fixture
def two(tmp_path):
    """A folder with the checkpoints of the steps 10 and 20."""
    folder = CheckpointFolder(tmp_path / "c")
    folder.save(state(10))
    folder.save(state(20))
    return tmp_path / "c"


def loaded(folder):
    """Load as a new process does; return the state and what was said."""
    said = []
    return CheckpointFolder(folder, label="treated/seed1", say=said.append).load(), said


@pytest.mark.parametrize("ending", ["safetensors", "sha256"])
def test_a_flipped_byte_anywhere_is_noticed(two, ending):
    file = two / f"step20.{ending}"
    whole = file.read_bytes()
    for offset in {*range(0, len(whole), 13), *range(10), len(whole) - 1}:
        for flip in (1, 128):
            damaged = bytearray(whole)
            damaged[offset] ^= flip
            file.write_bytes(damaged)
            found, said = loaded(two)
            assert same(sorted_state(found), sorted_state(state(10))), offset
            assert len(said) == 1 and str(two / "step20.safetensors") in said[0] and "is damaged" in said[0]
            assert "treated/seed1 goes on from step 10" in said[0]
    file.write_bytes(whole)
    assert loaded(two)[0].step == 20 and loaded(two)[1] == []


@pytest.mark.parametrize("ending", ["safetensors", "sha256"])
def test_a_file_cut_off_anywhere_is_noticed(two, ending):
    file = two / f"step20.{ending}"
    whole = file.read_bytes()
    for length in {*range(0, len(whole), 17), *range(10), len(whole) - 1}:
        file.write_bytes(whole[:length])
        found, said = loaded(two)
        assert found.step == 10 and "is damaged" in said[0], length
    file.write_bytes(whole + b"\0")
    assert loaded(two)[0].step == 10


def test_a_missing_sum_and_nothing_whole(two):
    (two / "step20.sha256").unlink()
    found, said = loaded(two)
    assert found.step == 10 and "was not finished (it has no sha256)" in said[0]
    (two / "step10.safetensors").write_bytes(b"")
    found, said = loaded(two)
    assert found is None and "step10" in said[0] and "step20" in said[0]
    assert said[0].endswith("treated/seed1 goes on from the beginning")


def test_a_renamed_checkpoint_is_of_another_step(two):
    for ending in ("safetensors", "sha256"):
        (two / f"step20.{ending}").rename(two / f"step30.{ending}")
    found, said = loaded(two)
    assert found.step == 10 and "is of step 20" in said[0]


def test_the_damaged_ones_go_and_the_whole_one_before_stays(two):
    (two / "step20.safetensors").write_bytes(b"broken")
    folder = CheckpointFolder(two)
    assert folder.load().step == 10
    folder.save(state(15))
    assert names(two) == ["step10.safetensors", "step10.sha256", "step15.safetensors", "step15.sha256"]
    (two / "step15.sha256").write_bytes(b"broken")
    folder = CheckpointFolder(two)
    assert folder.load().step == 10
    folder.save(state(15))
    assert loaded(two)[0].step == 15


@pytest.mark.parametrize("damaged", [False, True])
def test_a_training_killed_at_every_write_has_a_whole_state(tmp_path, damaged):
    def saves():
        folder = CheckpointFolder(tmp_path / "c")
        folder.load()
        folder.save(state(20))

    ended, number = -signal.SIGKILL, 0
    while ended:
        number += 1
        before = CheckpointFolder(tmp_path / "c")
        before.remove()
        before.save(state(5))
        before.save(state(10))
        if damaged:  # what is written anew stands there already
            before.save(state(20))
            (tmp_path / "c" / "step20.sha256").write_bytes(b"broken")
        ended = killed_at(f"*#{number}", saves)
        assert ended in (-signal.SIGKILL, 0)
        found, said = loaded(tmp_path / "c")
        assert same(sorted_state(found), sorted_state(state(10 if number <= 3 else 20)))
        assert bool(said) == (number in (2, 3) or (damaged and number == 1))  # tensors without their sum
    assert number == 5  # before and after the tensors, before and after the sum


def test_what_cannot_be_written_leaves_the_last_state(two, monkeypatch):
    def full(*_given):
        raise OSError(28, "No space left on device")

    folder = CheckpointFolder(two)
    assert folder.load().step == 20
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ModelDoctorError, match=r"step30\.safetensors' cannot be written \(No space left"):
        folder.save(state(30))
    assert loaded(two)[0].step == 20 and len(names(two)) == 4


def test_a_state_is_due_by_time_or_by_steps(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    folder = CheckpointFolder(tmp_path / "c")
    assert not folder.due(1)
    now[0] += 59.9
    assert not folder.due(2)
    now[0] += 0.2
    assert folder.due(3)
    folder.save(state(3))
    assert not folder.due(4)
    folder._cost = 10.0  # a slow disk: saving may take a twentieth of the time
    now[0] += 199.0
    assert not folder.due(5)
    now[0] += 2.0
    assert folder.due(6)
    monkeypatch.setenv("TORCHDOCTOR_CHECKPOINT_STEPS", "3")
    folder = CheckpointFolder(tmp_path / "c")
    assert [step for step in range(1, 10) if folder.due(step)] == [3, 6, 9]
    for wrong in ("0", "-2", "x"):
        monkeypatch.setenv("TORCHDOCTOR_CHECKPOINT_STEPS", wrong)
        with pytest.raises(InputError, match="expected a number of steps"):
            CheckpointFolder(tmp_path / "c")


def test_a_step_can_be_killed_and_the_run_asked_to_stop(tmp_path):
    def steps():
        folder = CheckpointFolder(tmp_path / "c", label="control/seed0")
        for step in range(1, 30):
            if folder.due(step):
                return 1
            (tmp_path / "reached").write_text(str(step))
        return 0

    assert killed_at("control/seed0/step17", steps) == -signal.SIGKILL
    assert (tmp_path / "reached").read_text() == "16"
    assert killed_at("treated/seed0/step17", steps) == 0
    asked = []
    folder = CheckpointFolder(tmp_path / "c", stop=lambda: bool(asked))
    assert not folder.stopping()
    asked.append(1)
    assert folder.stopping()
