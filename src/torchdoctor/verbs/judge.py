"""Score weights on the validation split, and say in the end whose to use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from torchdoctor.case.preparation import Case
from torchdoctor.case.splits import swappable, swapped_images
from torchdoctor.data.loader import Loader
from torchdoctor.files.reading import read_json
from torchdoctor.files.writing import write_json
from torchdoctor.images.batches import Batch
from torchdoctor.network.copying import copy_of
from torchdoctor.network.state import load_state
from torchdoctor.treatment.cure import JOINED_BY
from torchdoctor.treatment.labels_by_hand import ANSWERED
from torchdoctor.treatment.remedies import REMEDIES
from torchdoctor.treatment.result import Treatment
from torchdoctor.treatment.scoring import NEED_SWAPPED, Answered, Select, answers_of, mean_answers, score_of
from torchdoctor.treatment.soup import averaged_seeds
from torchdoctor.types import InputError
from torchdoctor.verbs.cures import validation_images
from torchdoctor.verbs.search_budget import budget_steps

TRIALS = "trials.json"
CERTAIN = 2.0  # standard errors, beyond which validation images overrule what is expected
SCORED_BY: Mapping[Select, str] = {
    "iid": "validation accuracy",
    "balanced": "validation accuracy with every category weighing the same",
    "swapped": "validation accuracy with backgrounds swapped",
    "mean": "the mean of validation accuracy and that with backgrounds swapped",
}


@dataclass(frozen=True)
class Judge:
    """How weights are scored.

    Attributes:
        case: The prepared case.
        shown: The validation images that remedies may look at.
        images: The validation images that judge them.
        swapped: The same before the backgrounds of other categories; empty without masks.
        select: What is compared: accuracy on validation images (`iid`), with every category weighing the same
            (`balanced`), with swapped backgrounds (`swapped`), or the mean of iid and swapped (`mean`).
    """

    case: Case
    shown: Loader
    images: Loader
    swapped: tuple[Batch, ...]
    select: Select

    def score(self, state: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Score weights.

        Args:
            state: A state of the case's network.

        Returns:
            {iid, balanced, swapped, score} in percent; `swapped` is NaN without masks.
        """
        own: nn.Module = copy_of(self.case.model)
        load_state(own, state)
        return score_of(own, self.images, self.swapped, self.select)

    def margin_of(self, score: float) -> float:
        """Return how far below a score another may lie that is about as high.

        Args:
            score: The higher score in percent.

        Returns:
            Two standard errors of the difference of two scores on unlike images, in percentage points:
            twice the square root of `2 p (100 - p) / n`, where p is the score, at least one
            image away from 0 and 100, and n the number of images; where categories weigh the same, as many
            images as would have that error if every category had as many.
        """
        counts = np.unique(self.images.table.labels, return_counts=True)[1]
        number = float(len(self.images))
        if self.select == "balanced":
            number = len(counts) ** 2 / float((1 / counts).sum())
        inside = min(max(score, 100 / (number + 1)), 100 * number / (number + 1))
        return CERTAIN * float(np.sqrt(2 * inside * (100 - inside) / number))

    def answers(self, states: Sequence[Mapping[str, torch.Tensor]]) -> Answered:
        """Return the answers to the images that judge, as means over several weights.

        Args:
            states: States of the case's network.

        Returns:
            The answers.
        """
        own: nn.Module = copy_of(self.case.model)
        found = []
        for state in states:
            load_state(own, state)
            found.append(answers_of(own, self.images, self.swapped, self.select))
        return mean_answers(found)

    def among(self, arms: Iterable[str]) -> Judge:
        """Return the judge of some arms, which looks at no image that one of them may solve layers on.

        Args:
            arms: The names of the arms.

        Returns:
            The judge.
        """
        shown, images = validation_images(self.case, arms)
        if images is self.case.data.validation:
            return self
        return replace(self, shown=shown, images=images, swapped=swapped_images(images, self.case.plan.seed))


def judge_of(case: Case) -> Judge:
    """Return how the weights of candidates are scored.

    Args:
        case: The prepared case.

    Returns:
        The judge that the settings ask for.

    Raises:
        InputError: The budget cannot be read, or masks are needed and missing.
    """
    check_choice(case)
    images = case.data.validation
    return Judge(case, images, images, swapped_images(images, case.plan.seed), case.plan.select)


def check_choice(case: Case) -> None:
    """Refuse a choice between candidates that cannot be made, before anything is computed.

    Args:
        case: The prepared case.

    Raises:
        InputError: The budget cannot be read, or masks are needed and missing.
    """
    budget_steps(case.plan.budget, lambda: 1.0)  # refuses a wrong budget now, not after the diagnosis
    if case.plan.select in NEED_SWAPPED and not swappable(case.data.validation):
        raise InputError(
            f"--select {case.plan.select!r} swaps the backgrounds of validation images by their masks, and "
            "there are none: use --select iid, or data whose validation images have masks"
        )


def better_arm(folder: Path, judge: Judge, treatment: Treatment, arms: Sequence[str]) -> str:
    """Let the validation split choose which of the arms trained in full is compared with the control.

    The best score decides, with two exceptions. A few images of a rare category say little about an arm that
    balances categories, and theory says that it is right. Such an arm is taken unless it is worse than the
    best by more than two standard errors of the difference; it edits what another arm has trained where that
    arm scores higher than the control. The same holds for an arm that uses a person's answers about labels:
    the labels of the validation images may be as wrong as those that the person corrected.

    Args:
        folder: The run's folder; the choice is added to `trials.json`.
        judge: How weights are scored.
        treatment: The trained arms.
        arms: The names of the arms that a choice led to; of equal ones the first is taken.

    Returns:
        The name of the arm.
    """
    judge = judge.among(treatment.names())
    answers = {
        name: judge.answers(states)
        for name in dict.fromkeys(["control", *arms])
        if (states := [one.state for one in treatment.arms if one.name == name])
    }
    means = {name: found.score for name, found in answers.items()}
    best = max((name for name in means if name != "control"), key=lambda name: means[name])
    expected = _expected_arm(means, judge.select)
    if expected is not None:
        error = CERTAIN * answers[expected].error_of_difference(answers[best])
        best = expected if means[expected] >= means[best] - error else best
    write_json(folder / TRIALS, {**read_json(folder / TRIALS), "in_full": means, "compared": best})
    return best


def _is_expected(arm: str, select: Select) -> bool:
    """Tell whether an arm is right by what is known beside the score: see `better_arm`."""
    cure = REMEDIES.get(arm.split(JOINED_BY)[-1])
    balances = cure is not None and not cure.passes and "rare category" in cure.causes
    return arm == ANSWERED or (balances and select == "balanced")


def _expected_arm(means: Mapping[str, float], select: Select) -> str | None:
    """Return the expected arm; if it edits, then what a training better than the control has trained."""
    arms = [name for name in means if _is_expected(name, select)]
    on_better = [name for name in arms if means.get(name.partition(JOINED_BY)[0], 0.0) > means["control"]]
    joined = [name for name in on_better if JOINED_BY in name]
    return next(iter([*joined, *arms]), None)


def choose_weights(folder: Path, judge: Judge, treatment: Treatment, arm: str) -> dict[str, Any]:
    """Let the validation split choose whose weights to use, and add the choice to `trials.json`.

    Args:
        folder: The run's folder.
        judge: How weights are scored.
        treatment: The trained arms.
        arm: The arm that is compared with the control.

    Returns:
        {use, arm, select, validation_scores, means, soup, reason}. `use` is the arm if it beats the base, and
        the control by more than the standard error of the difference; else the better of these two. An arm
        that is expected to be right (see `better_arm`) is used unless it is worse than the better of these
        two by more than twice that error. Scores
        are in percent, a score for each seed; `means` are their means, by which `use` is chosen. `soup` is
        None, or {score, used} of the averaged weights of the seeds of `use`, which are used where they score
        at least as high as the best of the seeds.
    """
    judge = judge.among(treatment.names())
    state = {name: value.detach().cpu() for name, value in judge.case.model.state_dict().items()}
    answers = {"base": [judge.answers([state])]}
    for trained in treatment.arms:
        if trained.name in ("control", arm):
            answers.setdefault(trained.name, []).append(judge.answers([trained.state]))
    scores = {name: [each.score for each in found] for name, found in answers.items()}
    means = {name: sum(values) / len(values) for name, values in scores.items()}
    fallback = "control" if means["control"] > means["base"] else "base"
    error = mean_answers(answers[arm]).error_of_difference(mean_answers(answers["control"]))
    better = means[arm] > means["control"] + error and means[arm] > means["base"]
    expected = _is_expected(arm, judge.select) and means[arm] >= means[fallback] - CERTAIN * error
    use = arm if better or expected else fallback
    numbers = ", ".join(f"{name} {mean:.1f}" for name, mean in means.items())
    numbers += f"; standard error of {arm} less control {error:.1f}"
    choice = {
        "use": use,
        "arm": arm,
        "select": judge.select,
        "validation_scores": scores,
        "means": means,
        "soup": _soup(judge, treatment, use, scores[use]),
        "reason": f"by {SCORED_BY[judge.select]}: {numbers}",
    }
    record = read_json(folder / TRIALS)
    write_json(folder / TRIALS, {**record, "handed_back": choice})
    return choice


def _soup(judge: Judge, treatment: Treatment, use: str, of_seeds: Sequence[float]) -> dict[str, Any] | None:
    """Score the average of an arm's seeds; None where there is a single set of weights."""
    if use == "base" or len(of_seeds) < 2:
        return None
    score = judge.answers([handed_soup(judge.case, treatment, use)]).score
    return {"score": score, "used": score >= max(of_seeds)}


def handed_soup(case: Case, treatment: Treatment, arm: str) -> dict[str, torch.Tensor]:
    """Return the averaged weights of the seeds of an arm, always the same.

    Args:
        case: The prepared case.
        treatment: The trained arms.
        arm: The name of the arm.

    Returns:
        The weights, as `state_dict` returns them.
    """
    return averaged_seeds(case.model, treatment, arm, case.data.train, seed=case.plan.seed)
