"""A thousand categories: the page stays small, no table has a thousand rows, and output stays readable."""

from __future__ import annotations

import io
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from fake_results import fake_comparison, fake_diagnosis, fake_example
from torchdoctor import Batch, diagnose
from torchdoctor.case.outcome import MOST_NOTED, notes_of
from torchdoctor.cli.tables import print_diagnosis
from torchdoctor.diagnosis.statistics import MOST_FLAGGED, summarise
from torchdoctor.display.matrices import MOST_CELLS, MOST_NAMED, MOST_ROWS
from torchdoctor.evidence.rows import ImageRows
from torchdoctor.report.page import ReportContents, render_report
from torchdoctor.report.pictures import LARGEST_PAGE, MOST_CATEGORIES

MANY = 1000
NAMES = tuple(f"category {number:04d}" for number in range(MANY))


def page_of(diagnosis, **changes) -> str:
    """Render a report of a diagnosis."""
    given = {
        "title": "many categories", "diagnosis": diagnosis, "comparison": None, "examples": [],
        "prescription": [], "settings": {}, "environment": {}, "command": "torchdoctor diagnose",
        "loading_code": "", "notes": notes_of(diagnosis),
    }  # fmt: skip
    return render_report(ReportContents(**{**given, **changes}))


class Tables(HTMLParser):
    """Count the rows of each table of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[int] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self.rows.append(0)
        elif tag == "tr":
            self.rows[-1] += 1


def test_pictures_of_all_categories_lose_no_cell():
    diagnosis = fake_diagnosis(NAMES, layers=(("conv", 40),))
    confusion = np.diag(np.full(MANY, 50))
    confusion[777, 3] = 50
    figure = replace(diagnosis, confusion=confusion).confusion_figure()
    cells = figure.axes[0].images[0].get_array()
    block = -(-MANY // MOST_CELLS)
    assert cells.shape == (MOST_CELLS, MOST_CELLS) and cells[777 // block, 3 // block] == 50
    assert figure.get_figheight() < 10 and not figure.axes[0].get_yticklabels()
    assert f"largest of {block} neighbours" in figure.axes[0].get_ylabel()
    rows = diagnosis.correlation_figure().axes[0].images[0].get_array()
    assert rows.shape == (MOST_ROWS, 40) and rows.max() == 1
    assert diagnosis.correlation_figure().get_figheight() < 10


def test_up_to_a_hundred_categories_have_names():
    figure = fake_diagnosis(NAMES[:MOST_NAMED], layers=(("conv", 8),)).confusion_figure()
    assert len(figure.axes[0].get_yticklabels()) == MOST_NAMED


def test_a_sentence_for_each_of_many_categories_is_not_written():
    def flags(categories: int) -> tuple[str, ...]:
        ids, flat = np.arange(categories), np.ones((categories, 3))
        flat[0] = 0
        rows = ImageRows(ids, ids, flat, flat, flat, np.full(categories, np.nan))
        return summarise(
            "conv", rows, np.ones(categories, dtype=int), theta=0.2, delta=0.0, deviation=1.0,
            drift=np.full(3, np.nan), path="",
        ).flags  # fmt: skip

    assert len(flags(MOST_FLAGGED)) == MOST_FLAGGED
    assert flags(MANY) == (
        "1 category: no evidence at all, none correlated",
        f"{MANY - 1} categories: all kernels alike, none correlated",
    )
    diagnosis = fake_diagnosis(NAMES, empty=tuple(range(500)), layers=(("conv", 8),))
    notes = notes_of(diagnosis)
    assert len(notes) == MOST_NOTED + 1 and f"{500 - MOST_NOTED} more categories" in notes[-1]


def test_the_terminal_stays_readable():
    stream = io.StringIO()
    diagnosis = fake_diagnosis(NAMES, empty=tuple(range(500)), layers=(("conv", 8),))
    print_diagnosis(Console(file=stream, width=120), diagnosis)
    assert len(stream.getvalue().splitlines()) < 40


def thousand_categories():
    """Return a network that tells a thousand patterns apart, and five noisy images of each, 16 px."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 64, 4, 4), nn.ReLU(), nn.Conv2d(64, 128, 2, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )  # fmt: skip
    patterns = nn.functional.interpolate(torch.randn(MANY, 3, 4, 4), size=(16, 16))
    labels = torch.arange(MANY).repeat(5)
    images = patterns[labels] + 0.1 * torch.randn(5 * MANY, 3, 16, 16)
    head = nn.Linear(128, MANY)
    with torch.no_grad():  # the nearest mean, in units of each feature's deviation
        means, deviation = body(patterns), body(images).std(0)
        head.weight.copy_(100 * (means - means.mean(0)) / deviation**2)
        head.bias.copy_(-((head.weight * means).sum(1) + (head.weight * means.mean(0)).sum(1)) / 2)
    batches = [Batch(images[rows], labels[rows], rows) for rows in torch.arange(5 * MANY).split(500)]
    return nn.Sequential(*body, head).eval(), batches


@pytest.mark.slow
def test_a_real_diagnosis_of_a_thousand_categories_fits_on_a_page():
    model, batches = thousand_categories()
    diagnosis = diagnose(model, batches, layers=["0", "2"], classes=NAMES, draws=0, confidence=0.5)
    assert len(diagnosis.not_diagnosed) < MANY // 2
    html = page_of(diagnosis)
    assert len(html.encode()) < LARGEST_PAGE
    assert max(Tables(html).rows) <= MOST_CATEGORIES
    assert f"The {MOST_CATEGORIES} least accurate of {MANY} categories are listed" in html
    assert f"Heat map of all {MANY} categories" in html and "Confusion matrix" in html


@pytest.mark.slow
def test_a_page_with_everything_stays_small():
    layers = tuple((f"layer{number}.conv", 512) for number in range(20))
    diagnosis = fake_diagnosis(NAMES, empty=tuple(range(300)), layers=layers)
    kinds = ("repaired", "broken", "still wrong", "annotated")
    examples = [fake_example(kinds[number % 4], number, size=300) for number in range(60)]
    html = page_of(diagnosis, comparison=fake_comparison(classes=NAMES), examples=examples)
    assert len(html.encode()) < LARGEST_PAGE
    assert max(Tables(html).rows) <= MOST_CATEGORIES
    assert "and 280 more" in html
