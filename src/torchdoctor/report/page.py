"""Render a page that says whether the treatment helped, what was wrong, and how to run it again.

The page is complete in itself: it has no script and loads nothing, and names of files and categories appear
in it only as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from torchdoctor.diagnosis.causes_result import Causes
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.robustness_result import Robustness
from torchdoctor.diagnosis.sparsity import sparsity
from torchdoctor.diagnosis.suspects_result import Suspects
from torchdoctor.glossary import GLOSSARY
from torchdoctor.proof.result import Comparison
from torchdoctor.report.error_cards import ExplainedError, cause_rows, error_cards
from torchdoctor.report.example_cards import Example, example_groups
from torchdoctor.report.number_text import mean_of_known, number, plain_value, share, signed
from torchdoctor.report.pictures import MOST_CATEGORIES, MOST_LAYERS, drawn_figures, ramp
from torchdoctor.report.suspect_cards import ShownSuspect, suspect_cards
from torchdoctor.report.tables import category_rows, confusion_rows, key_numbers
from torchdoctor.report.verdict_text import explanation, headline
from torchdoctor.treatment.next_steps import NextStep

MOST_EXAMPLES = 36
MOST_NAMED = 20  # categories that are named in a sentence


@dataclass(frozen=True)
class ReportContents:
    """What a report is about.

    Attributes:
        title: The name of the run, such as the model and the data.
        diagnosis: The diagnosis of the base network.
        comparison: The comparison of the treated networks with it; None reports the diagnosis alone.
        examples: Images with the evidence of the base network and of the treated network.
        prescription: A row for each constraint of the treatment, its settings by name; empty if nothing was
            treated.
        settings: The settings of the run, possibly nested.
        environment: Versions of software and the device.
        command: The command line that repeats the run.
        loading_code: Python code that loads the network; may be empty.
        notes: Remarks for the end of the page.
        causes: The causes of the errors; None if they were not looked for.
        explained: Some of the errors, explained.
        suspects: Training images whose labels look wrong; None if they were not looked for.
        shown_suspects: Some of them, beside similar images.
        robustness: The noise curves of adversarial images; None if they were not measured.
        trials: The record of the trials by which a remedy was chosen (`trials.json`); None without.
        arm: The name of the network that is compared with the base network.
        images: The number of images by split.
        remarks: What of the data was left out or read in some way, in sentences.
        next_steps: What to do next, the most useful first.
    """

    title: str
    diagnosis: Diagnosis
    comparison: Comparison | None
    examples: Sequence[Example]
    prescription: Sequence[Mapping[str, object]]
    settings: Mapping[str, object]
    environment: Mapping[str, object]
    command: str
    loading_code: str
    notes: Sequence[str]
    causes: Causes | None = None
    explained: Sequence[ExplainedError] = ()
    suspects: Suspects | None = None
    shown_suspects: Sequence[ShownSuspect] = ()
    robustness: Robustness | None = None
    trials: Mapping[str, Any] | None = None
    arm: str = "treated"
    images: Mapping[str, int] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    next_steps: Sequence[NextStep] = ()


def render_report(contents: ReportContents) -> str:
    """Render a report as an HTML page.

    Args:
        contents: What the report is about. So that the page can be sent by mail, at most 36 examples and
            the heat maps of the last 16 layers are shown.

    Returns:
        The HTML text.
    """
    from jinja2 import Environment, StrictUndefined

    template = resources.files("torchdoctor.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    jinja = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.filters.update(number=number, signed=signed, share=share, value=plain_value)
    page = jinja.from_string(template).render(**_fields(contents), **_derived(contents))
    return page.strip().encode("utf-8", "replace").decode("utf-8")


def _fields(contents: ReportContents) -> dict[str, Any]:
    """Return the template's values that are fields of the contents."""
    names = (
        "title", "diagnosis", "comparison", "prescription", "environment", "command", "loading_code", "notes",
        "causes", "suspects", "robustness", "trials", "arm", "images", "remarks", "next_steps",
    )  # fmt: skip
    return {name: getattr(contents, name) for name in names}


def _derived(contents: ReportContents) -> dict[str, Any]:
    """Return the template's values that are computed from the contents."""
    diagnosis, comparison, examples = contents.diagnosis, contents.comparison, contents.examples
    prescribed = bool(contents.prescription)
    treated = comparison is not None or prescribed
    return {
        "glossary": GLOSSARY,
        "treated": treated,
        "tone": comparison.verdict if comparison and not diagnosis.inconclusive else "no evidence",
        "headline": headline(diagnosis, comparison, treated=prescribed),
        "explanation": explanation(diagnosis, comparison, treated=prescribed),
        "cards": key_numbers(diagnosis, comparison),
        "pictures": drawn_figures(diagnosis, comparison, MOST_LAYERS, contents.robustness),
        "cause_rows": cause_rows(contents.causes) if contents.causes else [],
        "error_cards": error_cards(contents.explained),
        "suspect_cards": suspect_cards(contents.shown_suspects),
        "agreement": {
            layer.name: mean_of_known(layer.agreement[len(layer.agreement) // 2])
            for layer in diagnosis.layers
        },
        "sparsity": {layer.name: mean_of_known(sparsity(layer.correlation)) for layer in diagnosis.layers},
        "layers_left_out": max(0, len(diagnosis.layers) - MOST_LAYERS),
        "examples": example_groups(examples[:MOST_EXAMPLES], contents.arm if treated else None),
        "examples_left_out": max(0, len(examples) - MOST_EXAMPLES),
        "ramp": ramp(),
        "categories": category_rows(diagnosis),
        "most_categories": MOST_CATEGORIES,
        "most_named": MOST_NAMED,
        "confusions": confusion_rows(diagnosis),
        "prescribed": list(dict.fromkeys(key for row in contents.prescription for key in row)),
        "settings": "\n".join(_yaml_lines(contents.settings)),
    }


def _yaml_lines(settings: Mapping[str, object], indent: str = "") -> Iterable[str]:
    """Yield nested settings the way YAML writes them."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from _yaml_lines(value, indent + "  ")
        elif isinstance(value, (list, tuple)):
            yield f"{indent}{key}: [{', '.join(str(entry) for entry in value)}]"
        else:
            yield f"{indent}{key}: {value}"
