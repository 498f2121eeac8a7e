"""All settings together: what was asked for, from the command line, from a file, or from Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torchdoctor.data.augmentation import AUGMENT, Augment
from torchdoctor.data.settings import DataSettings
from torchdoctor.diagnosis.settings import (
    EVIDENCE_ALONE,
    EVIDENCE_OF_TREATMENT,
    CausesSettings,
    DiagnosisSettings,
)
from torchdoctor.glossary import GLOSSARY
from torchdoctor.models.settings import ModelSettings
from torchdoctor.proof.settings import ProofSettings
from torchdoctor.settings import Amount, SettingsGroup, Whole, setting
from torchdoctor.treatment.labels_by_hand import ANSWERED
from torchdoctor.treatment.recipe import FROM_SCRATCH, Recipe
from torchdoctor.treatment.settings import STEP_DRAWS, TreatmentSettings
from torchdoctor.types import AskedPrecision, Evidence, InputError, NormPolicy, Precision, Resize, Tracker

BUDGET_TIMES = 3.0  # how often the control's own training an automatic choice and its proof may take in all
RANDOM = "random"  # the weights of a network that is trained from nothing
MEASURED: Literal["measured"] = "measured"  # the learning rate that short trainings choose
Verb = Literal["train", "diagnose", "treat", "checkup", "demo", "robustness"]


class TrainingSettings(SettingsGroup):
    """How a network is trained, from random weights or further."""

    epochs: Whole | Literal["auto"] = setting(
        "auto",
        "How many times the training goes through all training images.",
        left_out=f"train: {FROM_SCRATCH.epochs}; treat, checkup: {Recipe.epochs}",
    )
    learning_rate: Amount | Literal["auto", "measured"] = setting(
        "auto",
        "The highest learning rate; it is reached after the first tenth of the steps and then falls to 0. "
        "measured: the highest of four that is about as good as the best for the control on the validation "
        "images, for all arms (treat, checkup).",
        left_out=f"train: {FROM_SCRATCH.learning_rate:g}; treat, checkup: measured, or "
        f"{Recipe.learning_rate:g} where the training is too short to try others",
    )
    optimizer: Literal["sgd", "adamw"] = setting(Recipe.optimizer, "The optimiser.")
    weight_decay: Amount = setting(Recipe.weight_decay, "Weight decay of matrices and convolution kernels.")
    norm: NormPolicy = setting(
        Recipe.norm,
        "Batch-norm layers: train (normalise by the batch and update the running statistics; those whose "
        "parameters are not trained stay as they are) or frozen (use the running statistics as they are).",
    )
    precision: AskedPrecision = setting(
        Recipe.precision,
        "Number format of the forward pass. auto: bf16 on GPUs that compute in it, elsewhere fp32.",
    )
    augment: Augment = setting(
        AUGMENT, "Random changes of the training images: none, shifted crops, or crops and left-right flips."
    )
    new_head: bool = setting(
        False,
        "Begin with a new head behind the weights of a file, which may be for other categories or without a "
        "head (train); pretrained does so by itself where the categories differ in number.",
    )
    tensorboard: bool = setting(
        False, "Also write the training history as TensorBoard event files (needs the extra tensorboard)."
    )
    tracker: Tracker = setting(
        "none",
        "Where the training history also goes: tensorboard (as --tensorboard), or wandb, mlflow or trackio, "
        "set up by their own environment variables (each needs its package and the extra distributed).",
    )


class DiagnosisRunSettings(SettingsGroup):
    """Where a diagnosis that exists already is found."""

    diagnosis: str | None = setting(
        None, "A finished run whose diagnosis is used.", left_out="the diagnosis is made first"
    )


class AnswerSettings(SettingsGroup):
    """What a person answered about labels and objects."""

    labels: str | None = setting(
        None,
        "A labels.csv of an earlier run on the same data, with right categories in its column answer (or "
        "keep, or unusable): the arm relabelled trains with them.",
        left_out="no label is changed",
    )
    review: str | None = setting(
        None,
        "A run whose questions a person answered (torchdoctor review): its labels and masks are used, and "
        "the arms relabelled and swap train with them. Without --weights and --data, those of the run.",
        left_out="no review is used",
    )


class SearchSettings(SettingsGroup):
    """The choice of a remedy on the validation split."""

    auto: bool = setting(
        False,
        "Choose among all remedies and constraints, whatever the causes of errors, and compare the choice "
        "with the arms that --arms names.",
        left_out="without --arms and --constraints, choose among the cures of the causes that are found",
    )
    budget: str | None = setting(
        None,
        "What the choice may spend on trials: minutes such as 20, or steps such as 2000steps.",
        left_out=f"as much as keeps all training within {BUDGET_TIMES:g} times that of the control",
    )
    select: Literal["iid", "balanced", "swapped", "mean", "auto"] = setting(
        "auto",
        "What the choice compares: validation accuracy (iid), that with all categories weighing the same "
        "(balanced), that on objects before other backgrounds (swapped), or the mean of iid and swapped.",
        left_out="balanced where a category has few training images, mean where masks exist, else iid",
    )


class RunSettings(SettingsGroup):
    """Where the run is written, and the number that all randomness starts from."""

    out: str | None = setting(
        None,
        "The folder that the run is written to; it must not exist yet.",
        left_out="runs/<command>-<time>-<letters>",
        newcomer=True,
    )
    seed: Whole = setting(0, GLOSSARY["seed"])


class Settings(
    ModelSettings,
    DataSettings,
    TrainingSettings,
    DiagnosisSettings,
    CausesSettings,
    DiagnosisRunSettings,
    TreatmentSettings,
    AnswerSettings,
    ProofSettings,
    SearchSettings,
    RunSettings,
):
    """What a run was asked to do; None and "auto" leave a decision to the model, the data or the command."""

    FURTHER: ClassVar[frozenset[str]] = frozenset({"treat", "checkup", "demo"})

    @property
    def draws_per_step(self) -> int:
        """The noise draws of a training step.

        Raises:
            InputError: `draws` is `exact`, which only a diagnosis can do.
        """
        if self.draws == "exact":
            raise InputError("--draws 'exact' is for diagnose: a treatment's steps need a number of draws")
        return STEP_DRAWS if self.draws == "auto" else self.draws


class Plan(Settings):
    """What a run does: every setting decided, for a network, a data set and a command.

    `delta` "auto" (by layer), `draws` "auto", and "all" for `limit`, `classes` and `masks_per_category` are
    decisions of their own; `weights` "random" means that none were loaded. `arms` "auto" are chosen by the
    validation split, and `learning_rate` "auto" or "measured" is measured on it, while the command runs.
    """

    model: str
    weights: str
    data: str
    out: str
    image_size: int
    channels: Literal[1, 3]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Resize
    crop_share: float
    primary: str
    epochs: int
    learning_rate: float | Literal["auto", "measured"]
    precision: Precision
    layers: tuple[str, ...]
    evidence: Evidence
    arms: tuple[str, ...] | Literal["auto"]
    constraints: tuple[str, ...]
    expand_pixels: int
    select: Literal["iid", "balanced", "swapped", "mean"]

    @property
    def chooses(self) -> bool:
        """Whether the validation split chooses what is compared with the control."""
        return self.auto or self.arms == "auto"

    @property
    def arm_names(self) -> tuple[str, ...]:
        """The arms that are known beforehand; none where a choice decides and no arm was asked for."""
        return () if self.arms == "auto" else self.arms

    @property
    def recipe(self) -> Recipe:
        """How the network is trained; with the usual learning rate until it is measured."""
        rate = self.learning_rate
        return Recipe(
            epochs=self.epochs,
            optimizer=self.optimizer,
            learning_rate=Recipe.learning_rate if isinstance(rate, str) else rate,
            weight_decay=self.weight_decay,
            norm=self.norm,
            precision=self.precision,
        )


GROUPS: Mapping[str, tuple[type[SettingsGroup], ...]] = {
    "Model": (ModelSettings,),
    "Data": (DataSettings,),
    "Training": (TrainingSettings,),
    "Diagnosis": (DiagnosisSettings, CausesSettings, DiagnosisRunSettings),
    "Treatment": (TreatmentSettings, AnswerSettings),
    "Proof": (ProofSettings,),
    "Search": (SearchSettings,),
    "Run": (RunSettings,),
}
"""The groups of settings by the title that they have in help texts and in the reference."""

_ALWAYS = (ModelSettings, DataSettings, RunSettings)
_FURTHER = (TrainingSettings, DiagnosisSettings, DiagnosisRunSettings, TreatmentSettings, AnswerSettings)
USED_BY: Mapping[Verb, tuple[type[SettingsGroup], ...]] = {
    "train": (*_ALWAYS, TrainingSettings),
    "diagnose": (*_ALWAYS, DiagnosisSettings, CausesSettings),
    "treat": (*_ALWAYS, *_FURTHER),
    "checkup": (*_ALWAYS, *_FURTHER, CausesSettings, ProofSettings, SearchSettings),
    "demo": (*_ALWAYS, *_FURTHER, ProofSettings),
    "robustness": _ALWAYS,
}
"""The groups that each command uses: its flags, and what its `config.yaml` records."""


def check_verb(settings: Settings, verb: Verb) -> None:
    """Refuse settings that a command could not follow.

    Args:
        settings: What was asked for.
        verb: The command.

    Raises:
        InputError: A treatment has 0 epochs; a budget or score for choosing arms is given although the arms
            are named; no arm uses the labels that are given; a new head is asked for where a trained one is
            needed; or a learning rate is to be measured for a training from random weights.
    """
    if verb == "train" and settings.learning_rate == MEASURED:
        raise InputError(
            "--learning-rate 'measured' is of treat and checkup, which begin with a trained network: give a "
            "number"
        )
    if settings.new_head and verb != "train":
        raise InputError(
            "--new-head is of train: a new head knows no category, and there would be nothing to diagnose or "
            "treat. Train first, and give its weights"
        )
    if settings.new_head and settings.weights in (None, "random"):
        raise InputError("--new-head needs --weights: without weights everything is new")
    if verb in Settings.FURTHER and settings.epochs == 0:
        raise InputError("--epochs 0: nothing would be treated; expected 1 or more")
    if settings.labels is not None and settings.arms != "auto" and ANSWERED not in settings.arms:
        raise InputError(
            f"--labels {settings.labels!r} is used by the arm relabelled, which --arms does not name: name "
            "it too, or leave --arms out"
        )
    named = settings.arms != "auto" or settings.constraints != "auto"
    if verb == "checkup" and named and not settings.auto:
        for flag, value in (("--budget", settings.budget), ("--select", settings.select)):
            if value not in (None, "auto"):
                raise InputError(
                    f"{flag} {value!r} is used where the command chooses what is trained, but --arms or "
                    "--constraints name it: leave those out, or give --auto as well"
                )


def decided_by_verb(settings: Settings, verb: Verb) -> dict[str, Any]:
    """Return what the command alone decides, where the user did not.

    Args:
        settings: What was asked for.
        verb: The command.

    Returns:
        Epochs, learning rate and evidence: further training is shorter than training from random weights, at
        a rate that is measured, and a treatment diagnoses by the evidence that it penalises.
    """
    recipe = FROM_SCRATCH if verb == "train" else Recipe()
    alone = verb in ("diagnose", "robustness")
    decided = {
        "epochs": recipe.epochs,
        "learning_rate": "auto" if verb in Settings.FURTHER else recipe.learning_rate,
        "evidence": EVIDENCE_ALONE if alone else EVIDENCE_OF_TREATMENT,
    }
    return {name: value for name, value in decided.items() if getattr(settings, name) == "auto"}
