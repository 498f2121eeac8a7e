"""Train small networks in every way that processes share; run by tests/test_shared_training.py.

Started once for each process of a group. Each writes what came out to FOLDER/COUNT-RANK.pt.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from torchdoctor.diagnosis.diagnose import diagnose
from torchdoctor.images.batches import Batch, ShuffledBatches
from torchdoctor.network.copying import copy_of
from torchdoctor.processes import ALONE, launched
from torchdoctor.treatment.labels_by_hand import relabelled
from torchdoctor.treatment.losses import classification_terms
from torchdoctor.treatment.recipe import Course, Recipe
from torchdoctor.treatment.remedies import REMEDIES
from torchdoctor.treatment.settings import TreatmentSettings
from torchdoctor.treatment.training import fit
from torchdoctor.treatment.treat import trial_of

RECIPE = Recipe(epochs=2, learning_rate=0.02, norm="train")
SIZES = (7, 7, 8, 3, 1)  # images of the batches: on four processes the last two are not shared
TREATED = {
    "channel": (["channel"], {}),
    "paper": (["channel_paper"], {}),
    "authors": (["channel_authors"], {}),
    "space": (["space"], {}),
    "both": (["channel", "space scale=share evidence=gradient_x_activation"], {}),
    "lazy": (["channel", "space"], {"penalty_every": 2}),
}


class Net(nn.Module):
    """A small residual network with batch-norm, dropout, depth drawn at random and an unused layer."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.down, self.bn_down = nn.Conv2d(6, 8, 1, stride=2), nn.BatchNorm2d(8)
        self.drop, self.unused = nn.Dropout(0.3), nn.Linear(8, 3)
        self.fc = nn.Linear(8, 3)

    def forward(self, images):
        maps = functional.silu(self.bn1(self.conv1(images)))
        inner = self.bn2(self.conv2(maps))
        if self.training:
            inner = inner * inner.new_empty(len(inner), 1, 1, 1).bernoulli_(0.8)
        maps = functional.silu(inner + self.bn_down(self.down(maps)))
        return self.fc(self.drop(maps.mean((2, 3))))


def batches(sizes=SIZES, seed=0, dtype=torch.float64):
    """Return batches of coloured squares, of which every other has a mask."""
    generator = torch.Generator().manual_seed(seed)
    number = sum(sizes)
    pixels = 0.4 * torch.rand(number, 3, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (number,), generator=generator)
    pixels[torch.arange(number), labels, 2:6, 2:5] += 0.5
    masks = torch.zeros(number, 1, 8, 8)
    masks[:, :, 2:6, 2:5] = 1
    ids = torch.arange(number)
    annotated = ids % 2 == 0
    annotated[:7] = ids[:7] > 4  # the first processes have no mask in the first batch
    return tuple(
        Batch(pixels[part].to(dtype), labels[part], part, masks[part], annotated[part])
        for part in ids.split(sizes)
    )


def patient(dtype=torch.float64):
    """Return a network that was trained a little, its images and its diagnosis."""
    torch.manual_seed(0)
    model, own = Net().to(dtype), batches(dtype=dtype)
    fit(model, lambda _epoch: own, replace(RECIPE, epochs=4), steps_per_epoch=len(own), seed=0)
    found = diagnose(model.eval(), own, layers=["conv1", "conv2"], draws=2, confidence=0.0)
    drift = [np.where(np.arange(len(layer.drift)) == 2, 9.0, 0.01) for layer in found.layers]
    layers = tuple(replace(layer, drift=each) for layer, each in zip(found.layers, drift, strict=True))
    return model, ShuffledBatches(own), replace(found, layers=layers)


def arm_of(patient, name, processes, *, arms, recipe=RECIPE, draws=1, constraints=None, settings=None):
    """Return the weights, history and record of an arm."""
    model, images, diagnosis = patient
    trial = trial_of(
        model, images, diagnosis, arms=arms, constraints=constraints, layers=["conv1"], draws=draws,
        recipe=recipe, settings=settings or TreatmentSettings(weight=0.5, targets="label"),
    )  # fmt: skip
    validation = batches((8, 8), seed=5, dtype=next(model.parameters()).dtype)
    arm = trial.run(seeds=1, validation=validation, processes=processes).arm(name, 0)
    numbers = {f"{name}{place}": torch.tensor(value).double() for place, entry in enumerate(arm.history)
               for name, value in entry.items()}  # fmt: skip
    return {**arm.state, **numbers, "steps": torch.tensor(arm.steps)}, list(arm.skipped)


def cures(processes):
    """Yield every built-in cure."""
    own = patient()
    for name in REMEDIES:
        arm = relabelled({3: 1, 4: 2}) if name == "relabelled" else name
        yield f"cure {name}", arm_of(own, name, processes, arms=[arm] if name != "control" else ["ema"])
    for name in ("control", "treated", "sam", "rrr"):
        arms, recipe = ["treated" if name == "control" else name], replace(RECIPE, norm="frozen")
        yield f"frozen {name}", arm_of(own, name, processes, arms=arms, recipe=recipe)


def constraints(processes, dtype=torch.float64, names=tuple(TREATED)):
    """Yield all constraints, for a draw and for ten."""
    own = patient(dtype)
    for name in names:
        texts, others = TREATED[name]
        settings = TreatmentSettings(weight=0.5, targets="label", **others)
        for draws in (1, 10):
            given = {"constraints": texts, "draws": draws, "settings": settings}
            yield f"{dtype} {name} {draws}", arm_of(own, "treated", processes, arms=["treated"], **given)


def spoiled(terms, rank_of_image):
    """Return terms that are not finite for one image in the second step."""

    def changed(model, batch, step):
        if step == 1:
            images = batch.images.clone()
            images[rank_of_image] = float("nan")
            batch = replace(batch, images=images)
        return terms(model, batch, step)

    return changed


def own_courses(processes):
    """Yield courses of a user's own: a loss that couples images, what is not shared, steps that fail."""
    model, images, _ = patient()

    def coupled(model, batch, _step):
        def loss(logits, labels):
            weight = logits.detach().softmax(1)[:, 0]
            return (weight * functional.cross_entropy(logits, labels, reduction="none")).sum() / weight.sum()

        decay = sum(value.square().sum() for value in model.parameters())
        return {**classification_terms(model, batch, loss)[1], "decay": 0.01 * decay}

    def twice(model, batch, _step):
        one = classification_terms(model, batch)[1]["loss"]
        flipped = replace(batch, images=batch.images.flip(3))
        return {"loss": one, "other": classification_terms(model, flipped)[1]["loss"]}

    def bare(model, batch, _step):
        model.drop.p = 0.0
        images = batch.images.clone().requires_grad_(True)
        model.eval()
        (gradient,) = torch.autograd.grad(model(images).logsumexp(1).sum(), [images], create_graph=True)
        return {
            "loss": functional.cross_entropy(model(batch.images), batch.labels) + gradient.square().mean()
        }

    def some(model, batch, step):
        terms = classification_terms(model, batch)[1]
        own = processes.rank == 1 or processes.alone
        return {**terms, **({"unused": processes.count * model.unused.weight.square().sum()} if own else {})}

    plain = lambda model, batch, _step: classification_terms(model, batch)[1]  # noqa: E731
    for name, terms in {
        "coupled": coupled, "twice": twice, "bare": bare, "some": some, "spoiled": spoiled(plain, 5),
    }.items():  # fmt: skip
        own = copy_of(model)
        trained = fit(
            own, lambda _epoch: images.batches, RECIPE, steps_per_epoch=len(SIZES), seed=3,
            course=Course(terms), processes=processes,
        )  # fmt: skip
        yield f"own {name}", (dict(own.state_dict()), list(trained.skipped))


class Memory:
    """Checkpoints in memory, of which process `count - 1` asks for one after step 3, and to stop."""

    def __init__(self, processes, state=None):
        self.asks, self.state, self.stop = processes.rank == processes.count - 1, state, state is None

    def load(self):
        return self.state

    def save(self, state):
        self.state = replace(state, tensors={name: value.clone() for name, value in state.tensors.items()})

    def due(self, step):
        return self.asks and step == 3

    def stopping(self):
        return self.asks and self.stop and self.state is not None


def interrupted(processes):
    """Yield a training that one process asks to stop, and that goes on from the main process's state."""
    from torchdoctor.types import Interrupted

    model, images, _ = patient()
    given = {"steps_per_epoch": len(SIZES), "seed": 3, "processes": processes}
    whole = copy_of(model)
    fit(whole, lambda number: images.epoch(number, 3), RECIPE, **given)
    stopped, memory = copy_of(model), Memory(processes)
    try:
        fit(stopped, lambda number: images.epoch(number, 3), RECIPE, checkpoints=memory, **given)
        raise AssertionError("nobody stopped")
    except Interrupted:
        pass
    again = Memory(processes, memory.state if processes.main else None)
    again.stop = False
    resumed = copy_of(model)
    fit(resumed, lambda number: images.epoch(number, 3), RECIPE, checkpoints=again, **given)
    ended = resumed.state_dict()
    unlike = [name for name, value in whole.state_dict().items() if not torch.equal(value, ended[name])]
    assert memory.state.step in (3, 4) and not unlike, (memory.state.step, unlike)
    yield "resumed", (dict(resumed.state_dict()), [])
    timed = copy_of(model)
    seconds = fit(timed, lambda number: images.epoch(number, 3), replace(RECIPE, seconds=0.3), **given)
    steps = processes.gather((seconds.steps, [value.sum().item() for value in timed.state_dict().values()]))
    assert all(each == steps[0] for each in steps)


def main(folder):
    """Compute all cases, and write them."""
    processes = launched()
    torch.set_num_threads(1)
    results = {}
    for group in (
        constraints(processes), constraints(processes, torch.float32, ("both",)), cures(processes),
        own_courses(processes), interrupted(processes),
    ):  # fmt: skip
        results.update(group)
    torch.save(results, Path(folder) / f"{processes.count}-{processes.rank}.pt")
    processes.wait()
    assert processes.alone == (processes == ALONE)


if __name__ == "__main__":
    main(sys.argv[1])
