"""Run the stages of a checkup on a network with a planted fault, and say what the choice brought.

`planted` (drawn images) and `planted_photos` (photographs, a pretrained network) plant the faults.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from torchdoctor.case.answers import Answers
from torchdoctor.case.defaults import masked_count
from torchdoctor.case.preparation import Case, case_of
from torchdoctor.case.settings import Settings
from torchdoctor.data.load import Splits
from torchdoctor.data.loader import Loader
from torchdoctor.diagnosis.suspects_result import Suspects
from torchdoctor.network.copying import copy_of
from torchdoctor.network.prediction import predict_logits
from torchdoctor.randomness import key
from torchdoctor.treatment.heads import balanced_accuracy
from torchdoctor.treatment.training import fit
from torchdoctor.verbs.begin import Watch
from torchdoctor.verbs.causes import causes_stage
from torchdoctor.verbs.checkup import with_better_arm
from torchdoctor.verbs.judge import choose_weights, judge_of
from torchdoctor.verbs.learning_rate import with_rate
from torchdoctor.verbs.search import choose_stage, plan_with_choice
from torchdoctor.verbs.suspects import suspects_stage
from torchdoctor.verbs.treat import diagnosis_of, treat_stage

# Shares: of the training images that a person answers for, and of answers that are wrong.
ANSWERED, MISTAKEN = 0.05, 0.1
RATE = 0.01  # the fixed learning rate of earlier versions

Line = dict[str, Any]


@dataclass(frozen=True)
class Plant:
    """A network with a planted fault, and its images.

    Attributes:
        clean: The twin, trained without the fault.
        faulty: The network.
        images: The training images, with the fault.
        checked: The validation images, with the fault.
        test: The test images, without it.
        truth: The right label of every training image, by its id, where a person is simulated; else None.
        layers: The layers to diagnose.
        epochs: How long the further training is.
        seeds: How many seeds it has.
        fixed_rate: Whether the control is also trained at the fixed learning rate of earlier versions.
    """

    clean: nn.Module
    faulty: nn.Module
    images: Loader
    checked: Loader
    test: Loader
    truth: np.ndarray | None
    layers: Sequence[str]
    epochs: int
    seeds: int
    fixed_rate: bool = False


def accuracies(model: nn.Module, images: Loader) -> np.ndarray:
    """Return accuracy and balanced accuracy in percent."""
    _, labels, logits = predict_logits(model, images)
    right = 100 * float((logits.argmax(1) == labels).double().mean())
    return np.array([right, 100 * balanced_accuracy(logits.double().numpy(), labels.numpy())])


def simulated_answers(
    suspects: Suspects, images: Loader, truth: np.ndarray, categories: int, seed: int, share: float = ANSWERED
) -> Answers | None:
    """Answer for the first suspects as a person would who is right nine times in ten."""
    generator = np.random.default_rng([seed, 5])
    given = dict(zip(images.table.ids.tolist(), images.table.labels.tolist(), strict=True))
    labels, kept = dict[int, int](), set[int]()
    for suspect in suspects.suspects[: int(share * len(images))]:
        answer = int(truth[suspect.id])
        if generator.random() < MISTAKEN:
            answer = (answer + int(generator.integers(1, categories))) % categories
        if answer == given[suspect.id]:
            kept.add(suspect.id)
        else:
            labels[suspect.id] = answer
    return Answers(labels, frozenset(kept)) if labels else None


def measure(plant: Plant, seed: int, arms: Sequence[str] = (), name: str = "") -> Line:
    """Run the stages of a checkup, and return what they brought: the numbers of a line (see `planted`)."""
    classes = plant.images.classes or tuple(map(str, range(int(plant.test.table.labels.max()) + 1)))
    tests = {"test": plant.test}
    splits = Splits(classes, plant.images, plant.checked, tests, "test", plant.images.preprocessing, True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        settings = Settings(
            layers=tuple(plant.layers), epochs=plant.epochs, seeds=plant.seeds, seed=seed, data="scenes",
            out=place, device="cpu",
        )  # fmt: skip
        case = case_of(settings, "checkup", plant.faulty, splits, name=name)
        diagnosis = diagnosis_of(case, folder, None, Watch(silent))
        causes = causes_stage(case, folder, diagnosis, silent)
        suspects = suspects_stage(case, folder, silent)
        if plant.truth is not None:
            answers = simulated_answers(suspects, plant.images, plant.truth, len(classes), seed)
            if answers is not None:
                case = replace(case, answers=answers, plan=case.plan.but(labels="simulated"))
        case = with_rate(case, folder, Watch(silent))
        judge = judge_of(case)
        choice = choose_stage(case, folder, (diagnosis, causes), judge, Watch(silent))
        plan = plan_with_choice(case.plan, choice, masked_count(case.data))
        case = replace(case, plan=plan.but(arms=tuple(dict.fromkeys([*plan.arm_names, *arms]))))
        _, treatment = treat_stage(case, folder, diagnosis, Watch(silent))
        case, treatment = with_better_arm(case, folder, judge, treatment, choice, ("relabelled", *arms))
        chosen = case.plan.arm_names[1]
        used = choose_weights(folder, judge, treatment, chosen)["use"]
    own, scores = copy_of(plant.faulty), dict[str, list[np.ndarray]]()
    for arm in treatment.arms:
        own.load_state_dict(dict(arm.state))
        scores.setdefault(arm.name, []).append(accuracies(own, plant.test))
    mean = {name: np.mean(values, axis=0) for name, values in scores.items()}
    rated = {"fixed_rate": fixed_rate(plant.faulty, case, plant.test)} if plant.fixed_rate else {}
    return {
        "clean": rounded(accuracies(plant.clean, plant.test)[0]),
        "faulty": rounded(accuracies(plant.faulty, plant.test)[0]),
        "control": rounded(mean["control"][0]), **rated, "chosen": rounded(mean[chosen][0]),
        "chosen_arm": chosen, "used": used, "learning_rate": case.plan.learning_rate,
        "balanced": {"control": rounded(mean["control"][1]), "chosen": rounded(mean[chosen][1])},
        "arms": {name: rounded(value[0]) for name, value in mean.items()},
        "causes": {cause: round(number, 1) for cause, number in causes.expected.items()},
        "suspects": len(suspects.suspects), "answered": 0 if case.answers is None else case.answers.given,
        "steps": treatment.arms[0].steps,
    }  # fmt: skip


def fixed_rate(faulty: nn.Module, case: Case, test: Loader) -> float:
    """Return the accuracy of the control at the learning rate of earlier versions, over the same seeds."""
    found = []
    for number in range(case.plan.seeds):
        own, stream = copy_of(faulty), key("treatment", case.plan.seed, number)
        fit(
            own, lambda epoch, stream=stream: case.data.train.epoch(epoch, stream),
            replace(case.plan.recipe, learning_rate=RATE), steps_per_epoch=case.data.train.steps_per_epoch,
            seed=stream,
        )  # fmt: skip
        found.append(accuracies(own, test)[0])
    return rounded(np.mean(found))


def rounded(value: float) -> float:
    """Return a number with two decimals."""
    return round(float(value), 2)


def silent(*_told: object) -> None:
    """Show no progress."""
