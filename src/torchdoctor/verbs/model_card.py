"""Write the model card of handed-back weights: what they are, whose, what was measured, how to load them.

Names of categories, splits and files come from the user: none of them may break the YAML or the Markdown,
and no folder of the user's machine is named.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from torchdoctor import __version__
from torchdoctor.case.preparation import Case
from torchdoctor.case.surroundings import in_memory, loading_code
from torchdoctor.data.load import SCHEMES
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.models.loading import TIMM_SOURCES
from torchdoctor.proof.result import Comparison
from torchdoctor.proof.split_result import Gain, SplitComparison
from torchdoctor.report.number_text import number, signed
from torchdoctor.report.verdict_text import explanation, headline
from torchdoctor.treatment.remedies import cure_named

if TYPE_CHECKING:
    from jinja2 import Environment

WEIGHTS = "model.safetensors"
MOST_NAMES = 100  # categories that the card lists; model.json holds all


@dataclass(frozen=True)
class Handed:
    """Weights that are handed back.

    Attributes:
        use: Whose weights they are: an arm's name, or `base`.
        averaged: Whether they are the mean over the seeds of the arm; else they are those of the first seed.
        accuracies: Their accuracy on each test split, in percent.
    """

    use: str
    averaged: bool
    accuracies: Mapping[str, float]


def of_first_seed(comparison: Comparison, use: str) -> Handed:
    """Return what is known of the weights of an arm's first seed, or of the base weights.

    Args:
        comparison: The comparison on the test splits.
        use: Whose weights they are: an arm's name, or `base`.

    Returns:
        The weights with their accuracies.
    """
    return Handed(
        use, False, {name: float(each.accuracy[use][0]) for name, each in comparison.splits.items()}
    )


def model_card(
    case: Case,
    diagnosis: Diagnosis,
    prescription: Sequence[Mapping[str, Any]],
    comparison: Comparison,
    handed: Handed,
    means: Mapping[str, float],
) -> str:
    """Return the model card of saved weights.

    Args:
        case: The prepared case.
        diagnosis: The diagnosis of the weights that the run started from.
        prescription: A row for each constraint of the treatment, its settings by name.
        comparison: The comparison on the test splits.
        handed: Whose weights they are, and how accurate.
        means: The validation scores by which they were chosen, by arm, in percent; empty where nothing was
            chosen.

    Returns:
        YAML front matter, then Markdown.
    """
    template = resources.files("torchdoctor.verbs").joinpath("model_card.md.jinja")
    card = _environment(comparison.classes).from_string(template.read_text(encoding="utf-8"))
    text = card.render(
        **_image_values(case),
        front_matter=front_matter(case, comparison, handed),
        name=public_name(case.plan.model),
        version=__version__,
        most=MOST_NAMES,
        use=handed.use,
        averaged=handed.averaged,
        accuracies=handed.accuracies,
        means=means,
        seeds=comparison.seeds,
        headline=headline(diagnosis, comparison),
        explanation=explanation(diagnosis, comparison),
        comparison=comparison,
        arms={arm: _meaning(arm) for arm in comparison.worst_group if arm != "base"},
        prescription=prescription,
        weights=Path(case.plan.weights).name,
        model_sha256=diagnosis.model_sha256,
        settings=case.plan,
        loading=loading_lines(case),
        command=""
        if in_memory(case.plan)
        else f"torchdoctor predict photo.jpg --weights {WEIGHTS}{_model_flag(case)}",
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def _environment(classes: Sequence[str]) -> Environment:
    """Return the jinja environment of the card, with its filters; text is escaped unless it is `Markup`."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=escaped,
    )
    environment.filters.update(
        code=code,
        number=number,
        p_value=_p_value,
        python=lambda values: Markup(list(values)),
        raw=Markup,
        signed=signed,
        worst=lambda split, arm: _worst(split, arm, classes),
    )
    return environment


def _image_values(case: Case) -> dict[str, Any]:
    """Return what the card says about the data and about how images are prepared, by name in the template."""
    fitted = case.data.preprocessing
    return {
        "colour": "RGB" if fitted.channels == 3 else "grey",
        "mode": "RGB" if fitted.channels == 3 else "L",
        "size": fitted.image_size,
        "scaled": fitted.scaled,
        "mean": fitted.mean,
        "std": fitted.std,
        "classes": case.classes,
        "data": data_name(case.plan.data)[1],
        "train_images": len(case.data.train),
    }


def front_matter(case: Case, comparison: Comparison, handed: Handed) -> str:
    """Return the card's YAML front matter.

    Args:
        case: The prepared case.
        comparison: The comparison on the test splits.
        handed: Whose weights they are, and how accurate.

    Returns:
        YAML in the form of the Hugging Face hub. Its accuracies (0 to 1) are those of the weights in the
        folder.
    """
    from huggingface_hub import EvalResult, ModelCardData

    kind, data = map(plain, data_name(case.plan.data))
    use = handed.use
    which = "mean of all seeds" if handed.averaged else f"seed {comparison.seeds[0]}"
    weights = "base weights" if use == "base" else f"{use}, {which}"
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=kind,
            dataset_name=data,
            dataset_split=plain(split),
            metric_type="accuracy",
            metric_name=f"accuracy ({weights})",
            metric_value=round(percent / 100, 6),
        )
        for split, percent in handed.accuracies.items()
    ]
    card = ModelCardData(
        library_name=library_of(case),
        pipeline_tag="image-classification",
        tags=["image-classification", "torchdoctor", "model-doctor"],
        metrics=["accuracy"],
        model_name=plain(f"{public_name(case.plan.model)} ({use})"),
        eval_results=results,
    )
    return str(card.to_yaml())


def loading_lines(case: Case) -> list[str]:
    """Return the ways to load the weights from within their folder, without Model Doctor where possible.

    Args:
        case: The prepared case.

    Returns:
        Pieces of Python code; each loads the weights.
    """
    name = case.plan.model
    own = f"{loading_code(case.plan, len(case.classes), Path(WEIGHTS))}\nmodel.eval()"
    if not is_timm(name):
        return [own]
    folder = 'model = timm.create_model("local-dir:.", pretrained=True)  # once pushed: hf-hub:OWNER/NAME'
    return [f"import timm\n{folder}\nmodel.eval()", *([own] if name.startswith("timm:") else [])]


def _model_flag(case: Case) -> str:
    """Return the flag that a network needs which the card beside the weights may not choose."""
    name = case.plan.model
    if ":" not in name or name.startswith(("torchvision:", "timm:")):
        return ""
    return f" --model {'local-dir:.' if is_timm(name) else name}"


def library_of(case: Case) -> str:
    """Return the library that builds the network unchanged.

    Args:
        case: The prepared case.

    Returns:
        `torchvision`, `timm` or `torchdoctor`: the hub's `library_name`.
    """
    name = case.plan.model
    if name.startswith("torchvision:") and case.data.preprocessing.channels == 3:
        return "torchvision"
    return "timm" if is_timm(name) else "torchdoctor"


def is_timm(model: str) -> bool:
    """Tell whether timm builds the network unchanged; of the catalogue's networks, the first layers differ.

    Args:
        model: The model's name.

    Returns:
        True for names such as `timm:NAME` and `hf-hub:OWNER/NAME`.
    """
    return model.partition(":")[0] in TIMM_SOURCES


def public_name(model: str) -> str:
    """Return a model's name without the folder it lies in.

    Args:
        model: The model's name.

    Returns:
        The name; of `local-dir:PATH` only the last part of the path.
    """
    source, _, rest = model.partition(":")
    return f"{source}:{Path(rest).resolve().name}" if source == "local-dir" else model


def data_name(spec: str) -> tuple[str, str]:
    """Return the kind of a data set and its name, without the folder it lies in.

    Args:
        spec: What `--data` names.

    Returns:
        The kind, as the hub's `dataset_type`, and the name.

    >>> data_name("cifar10@/home/me/data"), data_name("folder:/home/me/photos")
    (('cifar10', 'cifar10'), ('imagefolder', 'photos'))
    """
    scheme, _, location = spec.partition(":")
    if scheme in SCHEMES and scheme != "scenes":
        name = Path(location).expanduser().resolve().name or scheme
        return "imagefolder" if scheme == "folder" else scheme, name
    name = (location if scheme == "torchvision" else spec).partition("@")[0]
    return name.partition(":")[0], name


def plain(text: str) -> str:
    """Return text on a single line, without control characters.

    Args:
        text: Any text.

    Returns:
        Its words with single spaces between them.
    """
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def escaped(value: object) -> Markup:
    """Return text that Markdown and HTML show literally, in a table as well.

    Args:
        value: What is written; its text is used.

    Returns:
        The escaped text; `Markup` is returned unchanged.
    """
    if isinstance(value, Markup):
        return value
    return Markup(re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(plain(str(value)), quote=False)))


def code(text: str) -> Markup:
    """Return a name as Markdown code.

    Args:
        text: A name from the user.

    Returns:
        The name in backticks, or escaped where backticks could not show it literally.
    """
    name = plain(text)
    return Markup(f"`{name}`") if re.fullmatch(r"[\w .:/@+-]+", name) else escaped(name)


def _p_value(gain: Gain) -> str:
    """Return the p-value, corrected where it was."""
    return f"{gain.p_value if math.isnan(gain.p_adjusted) else gain.p_adjusted:.2g}"


def _worst(split: SplitComparison, arm: str, classes: Sequence[str]) -> str:
    """Return an arm's lowest accuracy of any category, and whose it is."""
    pairs = zip(split.per_category[arm], classes, strict=True)
    known = [(value, name) for value, name in pairs if not math.isnan(value)]
    if not known:
        return "-"
    value, name = min(known, key=lambda pair: pair[0])
    return f"{number(value)} ({name})"


def _meaning(arm: str) -> str:
    """Return what an arm does, in the words of its function."""
    if arm == "treated":
        return "Train under the constraints below, added to the loss with their weights."
    cure = cure_named(arm)
    return "A remedy of its own." if cure is None else cure.summary
