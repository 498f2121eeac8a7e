"""Write the model card of handed-back weights: what they are, whose, what was measured, how to load them.

Names of categories, splits and files come from the user: none of them may break the YAML or the Markdown,
and no folder of the user's machine is named.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from torchdoctor import __version__
from torchdoctor.case.preparation import Case
from torchdoctor.case.surroundings import loading_code
from torchdoctor.data.load import SCHEMES
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.models.loading import TIMM_SOURCES
from torchdoctor.proof.result import Comparison, Gain, SplitComparison
from torchdoctor.report.number_text import number, signed
from torchdoctor.report.verdict_text import explanation, headline
from torchdoctor.treatment.remedies import REMEDIES

WEIGHTS = "model.safetensors"
MOST_NAMES = 100  # categories that the card lists; model.json holds all


def model_card(
    case: Case,
    diagnosis: Diagnosis,
    prescription: Sequence[Mapping[str, Any]],
    comparison: Comparison,
    use: str,
    means: Mapping[str, float],
) -> str:
    """Return the card of the weights of `use`, an arm or `base`: YAML front matter, then Markdown.

    `means` holds the validation scores by which `use` was chosen, by arm, in percent; it is empty where
    nothing was chosen.
    """
    from jinja2 import Environment, StrictUndefined

    surroundings = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=escaped,
    )
    surroundings.filters.update(
        code=code,
        number=number,
        p_value=_p_value,
        python=lambda values: Markup(list(values)),
        raw=Markup,
        signed=signed,
        worst=lambda split, arm: _worst(split, arm, comparison.classes),
    )
    template = resources.files("torchdoctor.verbs").joinpath("model_card.md.jinja")
    fitted = case.data.preprocessing
    card = surroundings.from_string(template.read_text(encoding="utf-8")).render(
        front_matter=front_matter(case, comparison, use),
        name=public_name(case.plan.model),
        version=__version__,
        colour="RGB" if fitted.channels == 3 else "grey",
        mode="RGB" if fitted.channels == 3 else "L",
        size=fitted.image_size,
        mean=fitted.mean,
        std=fitted.std,
        classes=case.classes,
        most=MOST_NAMES,
        use=use,
        means=means,
        seeds=comparison.seeds,
        headline=headline(diagnosis, comparison),
        explanation=explanation(diagnosis, comparison),
        comparison=comparison,
        arms={arm: _meaning(arm) for arm in comparison.worst_group if arm != "base"},
        prescription=prescription,
        weights=Path(case.plan.weights).name,
        model_sha256=diagnosis.model_sha256,
        data=data_name(case.plan.data)[1],
        settings=case.plan,
        train_images=len(case.data.train),
        loading=loading_lines(case),
        command=f"torchdoctor predict photo.jpg --weights {WEIGHTS}{_model_flag(case)}",
    )
    return re.sub(r"\n{3,}", "\n\n", card)


def front_matter(case: Case, comparison: Comparison, use: str) -> str:
    """Return the card's YAML: the measured accuracies (0 to 1) are those of the weights in the folder."""
    from huggingface_hub import EvalResult, ModelCardData

    kind, data = map(plain, data_name(case.plan.data))
    weights = "base weights" if use == "base" else f"{use}, seed {comparison.seeds[0]}"
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=kind,
            dataset_name=data,
            dataset_split=plain(split),
            metric_type="accuracy",
            metric_name=f"accuracy ({weights})",
            metric_value=round(float(found.accuracy[use][0]) / 100, 6),
        )
        for split, found in comparison.splits.items()
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
    """Return the ways to load the weights from within their folder, without Model Doctor where possible."""
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
    """Return the library that builds the network as it is."""
    name = case.plan.model
    if name.startswith("torchvision:") and case.data.preprocessing.channels == 3:
        return "torchvision"
    return "timm" if is_timm(name) else "torchdoctor"


def is_timm(model: str) -> bool:
    """Whether timm itself builds the network, unchanged; the catalogue adapts the stems of its own."""
    return model.partition(":")[0] in TIMM_SOURCES


def public_name(model: str) -> str:
    """Return a model's name without the folder it lies in."""
    source, _, rest = model.partition(":")
    return f"{source}:{Path(rest).resolve().name}" if source == "local-dir" else model


def data_name(spec: str) -> tuple[str, str]:
    """Return the kind of a data set and its name, without the folder it lies in.

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
    """Return text on one line, without control characters."""
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())


def escaped(value: object) -> Markup:
    """Return text that Markdown and HTML show as it is, in a table as well; what is marked up stays."""
    if isinstance(value, Markup):
        return value
    return Markup(re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(plain(str(value)), quote=False)))


def code(text: str) -> Markup:
    """Return a name as code, or escaped where code could not show it as it is."""
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
    value, name = min(known, key=lambda one: one[0])
    return f"{number(value)} ({name})"


def _meaning(arm: str) -> str:
    """Return what an arm does, in the words of its function."""
    if arm == "treated":
        return "Train under the constraints below, added to the loss with their weights."
    remedy = REMEDIES.get(arm)
    first = ((remedy and remedy.__doc__) or "A remedy of its own").strip().splitlines()[0]
    return first.partition(";")[0].rstrip(".") + "."
