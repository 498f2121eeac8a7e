"""Run a whole checkup on a network and images that are given from Python."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchdoctor.case.outcome import Outcome
from torchdoctor.case.preparation import Case, case_of
from torchdoctor.case.settings import SearchSettings, Settings, TrainingSettings, check_verb
from torchdoctor.case.surroundings import IN_MEMORY
from torchdoctor.data.load import Splits, preprocessing_of
from torchdoctor.data.loader import Loader
from torchdoctor.data.table import carve
from torchdoctor.data.tensor_loader import tensor_loader
from torchdoctor.diagnosis.causes_result import Causes
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.settings import DiagnosisSettings
from torchdoctor.diagnosis.suspects_result import Suspects
from torchdoctor.files.writing import write_weights
from torchdoctor.images.batches import Batch
from torchdoctor.images.loaders import ImageSource, images_of
from torchdoctor.network.copying import copy_of
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.outputs import unwrap
from torchdoctor.network.prediction import device_of, dtype_of
from torchdoctor.processes import rank_by_launcher
from torchdoctor.proof.result import Comparison
from torchdoctor.proof.settings import ProofSettings
from torchdoctor.runs.history import check_trackers
from torchdoctor.treatment.result import Treatment
from torchdoctor.treatment.settings import TreatmentSettings
from torchdoctor.types import InputError, Progress, silent
from torchdoctor.verbs.begin import Say, open_locked_run, silent_text, with_facts
from torchdoctor.verbs.checkup import checkup_stages
from torchdoctor.verbs.model_card import WEIGHTS
from torchdoctor.verbs.model_folder import FOLDER as MODEL_FOLDER

TAKEN = frozenset(
    name
    for group in (TrainingSettings, DiagnosisSettings, TreatmentSettings, ProofSettings, SearchSettings)
    for name in group.model_fields
    if name != "new_head"
) | {"seed", "batch_size", "primary", "validation_share", "split_seed", "mean", "std"}
"""The settings that a checkup in Python takes; the others say where network and images come from."""

BASE = Path("base") / WEIGHTS  # in a run's folder: the weights that the checkup began with
READ_FROM_RANGE = (
    "the images came normalised: pictures, and the preprocessing beside the weights, use the mean and "
    "standard deviation that their range suggests (give mean= and std= if it is wrong)"
)


@dataclass(frozen=True, eq=False)
class Checkup:
    """What a checkup in Python ends with.

    Attributes:
        folder: The run's folder, as the command `checkup` writes it; a temporary one lives as long as this.
        record: What the command prints with `--json`.
        exit_code: 0 helped, 3 harmed or gained less than asked, 4 no evidence.
        diagnosis: The diagnosis of the network.
        causes: The causes of its errors on validation images.
        suspects: Training images whose labels look wrong.
        treatment: The trained arms.
        comparison: The arms compared on the test images.
    """

    folder: Path
    record: Mapping[str, object]
    exit_code: int
    diagnosis: Diagnosis
    causes: Causes
    suspects: Suspects
    treatment: Treatment
    comparison: Comparison
    _temporary: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        """Return the verdict and the compared arm.

        Returns:
            One line.
        """
        comparison = self.comparison
        return f"Checkup({comparison.arm}: {comparison.verdict}, {comparison.reason})"

    @property
    def state(self) -> dict[str, Tensor]:
        """The weights to use: what was best on validation images, which may be those that you gave."""
        from safetensors.torch import load_file

        return load_file(self.folder / MODEL_FOLDER / WEIGHTS)

    def report(self, path: str | Path) -> Path:
        """Write the report: one HTML page with everything in it.

        Args:
            path: Where the page is written.

        Returns:
            The file.

        Raises:
            InputError: There is something at that path already, or its folder is missing.
        """
        target = Path(path)
        if target.exists() or not target.parent.is_dir():
            found = "exists already" if target.exists() else "is in a folder that does not exist"
            raise InputError(f"report {str(target)!r} {found}: give another path")
        shutil.copyfile(self.folder / "report.html", target)
        return target


def checkup(
    model: nn.Module,
    train: ImageSource,
    validation: ImageSource | None,
    test: ImageSource | Mapping[str, ImageSource],
    *,
    classes: Sequence[str] | None = None,
    out: str | Path | None = None,
    progress: Progress = silent,
    say: Say = silent_text,
    **settings: Any,
) -> Checkup:
    """Diagnose a network, find the causes of its errors, treat it beside a control, and compare.

    Without `arms` the validation images choose what is tried, as the command `checkup` does. Images are held
    in memory, normalised as the network takes them.

    Args:
        model: The network; it is left as it was.
        train: Training images: a DataLoader, a Dataset, or an iterable of (images, labels), (images, labels,
            masks), dictionaries or `Batch`; or a loader of `load_data`.
        validation: Images that choose; None: a share of the training images is divided off.
        test: Images that judge; or several test splits by name.
        classes: The names of the categories; None: those of the training images, else numbers.
        out: The folder of the run; None: a temporary folder.
        progress: Called with stage, done, of how many.
        say: Receives sentences about what is done and what it costs.
        **settings: Settings of the command by name, such as `epochs=5`, `arms=("control", "swap")`, `seed=1`.

    Returns:
        The results; `report(path)` writes them as a page.

    Raises:
        InputError: A setting is unknown or does not fit, network and images do not belong together, the
            folder cannot be used, or this is another than the first of several launched processes.

    Example:
        >>> import torch, torchdoctor as td
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        ...     torch.nn.Flatten(), torch.nn.Linear(4, 2),
        ... )
        >>> images = [(torch.randn(16, 3, 9, 9), torch.arange(16) % 2)]
        >>> result = td.checkup(
        ...     model, images, images, images, arms=["balance"], layers=["0"], epochs=1, seeds=1, confidence=0
        ... )
        >>> result.comparison.arm
        'balance'
    """
    _check_names(settings)
    temporary = tempfile.TemporaryDirectory(prefix="torchdoctor-") if out is None else None
    folder = Path(temporary.name) / "run" if temporary is not None else Path(str(out))
    asked = Settings(**settings, out=str(folder), weights=str(folder / BASE))
    check_verb(asked, "checkup")
    check_trackers(asked.tensorboard, asked.tracker)
    case = _case(unwrap(model), train, validation, test, classes, asked, settings.get("batch_size"))
    outcome = _run(case, progress, say)
    return _result(folder, outcome, temporary)


def _check_names(settings: Mapping[str, object]) -> None:
    """Refuse settings that a checkup in Python does not take, and processes beside the first."""
    if rank_by_launcher() > 0:
        raise InputError(
            "checkup in Python works in one process, and several were launched: call it where "
            "torchdoctor.processes.launched().main is true, or take the command checkup, which all share"
        )
    unknown = sorted(set(settings) - TAKEN)
    if unknown:
        raise InputError(
            f"checkup: {unknown[0]!r} is no setting of a checkup in Python; there are: "
            f"{', '.join(sorted(TAKEN))}"
        )


def _run(case: Case, progress: Progress, say: Say) -> Outcome:
    """Run the stages of a checkup in the case's folder."""
    with open_locked_run(case, "checkup", False, progress, say) as (place, watch):
        write_weights(place / BASE, case.model.state_dict())
        return with_facts(checkup_stages(case, place, None, watch), case)


def _result(folder: Path, outcome: Outcome, temporary: tempfile.TemporaryDirectory[str] | None) -> Checkup:
    """Return the results of a checkup that has run in a folder."""
    assert outcome.diagnosis is not None and outcome.treatment is not None and outcome.comparison is not None
    return Checkup(
        folder, outcome.record, outcome.exit_code, outcome.diagnosis, Causes.load(folder),
        Suspects.load(folder), outcome.treatment, outcome.comparison, temporary,
    )  # fmt: skip


def _case(
    model: nn.Module,
    train: ImageSource,
    validation: ImageSource | None,
    test: ImageSource | Mapping[str, ImageSource],
    classes: Sequence[str] | None,
    settings: Settings,
    batch_size: int | None,
) -> Case:
    """Check network and images against each other, and decide every setting."""
    own = copy_of(model).eval()
    source = train if isinstance(train, Loader) else images_of(train)
    names = tuple(classes or getattr(source, "classes", None) or _numbers(own, source))
    images = tensor_loader(source, "train", names, batch_size=batch_size, augment=settings.augment)
    notes: tuple[str, ...] = ()
    if not isinstance(train, Loader):
        images, notes = _shown_as_asked(images, settings)
    prepared = images.preprocessing
    if validation is None:
        stay, checked = carve(images.table, settings.validation_share, settings.split_seed)
        images, other = replace(images, table=stay), replace(images, table=checked)
    else:
        other = tensor_loader(validation, "validation", names, shown=prepared, batch_size=images.batch_size)
    sources = test if isinstance(test, Mapping) else {"test": test}
    tests = {
        name: tensor_loader(each, name, names, shown=prepared, batch_size=images.batch_size)
        for name, each in sources.items()
    }
    primary = next(iter(tests)) if settings.primary == "auto" else settings.primary
    if primary not in tests:
        raise InputError(f"primary {primary!r}: no such test split; there are: {', '.join(tests)}")
    masked = bool(images.table.has_mask.any())
    data = Splits(names, images, other, tests, primary, prepared, masked, notes=notes)
    asked = settings.but(data=f"{IN_MEMORY}:images", mean="auto", std="auto")
    return case_of(asked, "checkup", own, data, name=f"{IN_MEMORY}:{type(model).__name__}")


def _shown_as_asked(images: Loader, settings: Settings) -> tuple[Loader, tuple[str, ...]]:
    """Return training images with the normalisation that was named; else a note on how it was found."""
    asked = Settings(mean=settings.mean, std=settings.std)
    if asked.mean == "auto" and asked.std == "auto":
        return images, (READ_FROM_RANGE,)
    return replace(images, preprocessing=preprocessing_of(asked, images.preprocessing)), ()


def _numbers(model: nn.Module, images: Any) -> tuple[str, ...]:
    """Return numbers as the names of as many categories as the network has logits."""
    first: Batch | None = next(iter(images), None)
    if first is None:
        raise InputError("train: there is no image")
    with frozen_eval(model) as frozen, torch.no_grad():
        logits = frozen.logits(first.images[:1].to(device_of(model), dtype_of(model)))
    return tuple(map(str, range(logits.shape[1])))
