"""The report says what the numbers say, in plain words, and nothing given to it can act."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from fake_results import (
    CLASSES,
    fake_causes,
    fake_comparison,
    fake_diagnosis,
    fake_example,
    fake_explained,
    fake_robustness,
    fake_shown,
    fake_suspects,
    with_first,
    with_more_arms,
)
from torchdoctor.display import overlays as figures
from torchdoctor.glossary import GLOSSARY
from torchdoctor.proof.split_result import Gain
from torchdoctor.report import page as page_module
from torchdoctor.report.number_text import number, plain_value, share, signed
from torchdoctor.report.page import ReportContents, render_report
from torchdoctor.report.pictures import LARGEST_PAGE, drawn_figures, photograph
from torchdoctor.report.verdict_text import headline

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "{{ 7 * 7 }}",
    '" onload="x',
    "$&'",
)


def page_of(**changes) -> str:
    """Render a report of fake results with some of them replaced."""
    given = {
        "title": "small ResNet on planted shapes",
        "diagnosis": fake_diagnosis(),
        "comparison": fake_comparison(),
        "examples": [fake_example("repaired", 1), fake_example("broken", 2)],
        "prescription": [{"constraint": "aggregate", "weight": 0.31415926, "tau": None}],
        "settings": {"treatment": {"steps": 200, "tests": ["shifted", "same"]}, "seed": 0},
        "environment": {"python": "3.12", "device": "cpu"},
        "command": "torchdoctor run shapes.yaml",
        "loading_code": 'import torchdoctor\nmodel = torchdoctor.load("treated")\nmodel.eval()',
        "notes": ["Made up."],
    }
    return render_report(ReportContents(**{**given, **changes}))


class Page(HTMLParser):
    """Collect a page's elements with their attributes, and its visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, {name: value or "" for name, value in attributes}))

    def handle_data(self, data):
        self.text += data

    def every(self, tag: str) -> list[dict[str, str]]:
        """Return the attributes of every element called `tag`."""
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module", autouse=True)
def drawn_before():
    """Draw the figures of equal results once; most tests are about what stands between them."""
    drawn = {}

    def remembered(*given):
        key = pickle.dumps(given)
        if key not in drawn:
            drawn[key] = drawn_figures(*given)
        return drawn[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_module, "drawn_figures", remembered)
        yield


@pytest.fixture(scope="module")
def page(drawn_before) -> Page:
    return Page(page_of())


def test_headlines_say_the_verdict():
    fine = fake_diagnosis()
    assert headline(fine, fake_comparison()) == (
        "The treatment helped: +12.4 points on shifted (95 % interval +10.0 to +14.8)"
    )
    assert headline(fine, fake_comparison(-6.2, "harmed")) == (
        "The treatment did harm: −6.2 points on shifted (95 % interval −8.0 to −4.4)"
    )
    assert headline(fine, fake_comparison(0.3, "no evidence")) == (
        "No evidence that the treatment helped: +0.3 points on shifted (95 % interval −0.9 to +1.5)"
    )
    empty = fake_diagnosis(empty=(0, 1, 2, 3, 4))
    assert (
        headline(empty, None) == headline(empty, fake_comparison()) == "Inconclusive: too little to diagnose"
    )
    right, total = np.trace(fine.confusion), fine.confusion.sum()
    assert headline(fine, None) == (
        f"Diagnosed, not yet treated: {100 * right / total:.1f} % of {total:,} images classified correctly"
    )


def test_harm_on_another_split_is_named():
    comparison = fake_comparison()
    worse = with_first(comparison.splits["same"], gain=Gain(-9.0, -11.0, -7.0, 0.0, "seeds"))
    harmed = replace(comparison, verdict="harmed", splits={**comparison.splits, "same": worse})
    assert headline(fake_diagnosis(), harmed).startswith("The treatment did harm: −9.0 points on same")


def test_the_page_opens_with_the_verdict_and_what_was_compared(page):
    text = page.text
    assert text.index("The treatment helped: +12.4 points") < text.index("Did it help?")
    assert "same further training of 200 steps on the same images, with 5 seeds" in text
    assert "Decided by: +12.4 points on shifted." in text
    for piece in ("+12.4", "(+10.0 to +14.8)", "< 0.001", "83 / 19", "52 % → 18 %", "52 %", "1,600"):
        assert piece in text


def test_the_page_holds_every_part(page):
    text = page.text
    for name in (
        *CLASSES,
        "layer3.conv2",
        "layer2.conv2",
        "layer1.conv2",
        "flat: hardly any kernel stands out",
    ):
        assert name in text
    assert "treatment:\n  steps: 200\n  tests: [shifted, same]\nseed: 0" in text
    assert 'model = torchdoctor.load("treated")' in text
    assert "torchdoctor run shapes.yaml" in text
    assert "0.3142" in text
    assert "nan" not in text.lower()


def test_the_page_begins_with_its_doctype():
    assert page_of(examples=[]).startswith("<!DOCTYPE html>")


def test_a_diagnosis_alone_makes_a_page():
    page = Page(page_of(comparison=None, diagnosis=fake_diagnosis(empty=(2,)), prescription=[]))
    assert "Diagnosed, not yet treated" in page.text
    assert "Did it help?" not in page.text and "Gains by category" not in page.text
    assert "for want of a confident correct image: boat." in page.text


def test_an_inconclusive_diagnosis_says_why():
    page = Page(page_of(comparison=None, diagnosis=fake_diagnosis(empty=(0, 1, 2, 3, 4)), examples=[]))
    assert "5 of 8 categories have no image that is classified correctly" in page.text


def test_names_are_text_and_never_act():
    diagnosis = fake_diagnosis((*HOSTILE, "a", "b", "c"), layers=(("<script>layer</script>", 8),))
    comparison = fake_comparison(classes=diagnosis.classes)
    renamed = {f"<b>{name}</b>": split for name, split in comparison.splits.items()}
    hostile = page_of(
        title=HOSTILE[0],
        diagnosis=diagnosis,
        comparison=replace(comparison, splits=renamed, primary="<b>shifted</b>", reason=HOSTILE[1]),
        examples=[fake_example("repaired", 1, name=name, label=name) for name in HOSTILE],
        prescription=[{HOSTILE[0]: HOSTILE[1]}],
        settings={HOSTILE[0]: {HOSTILE[1]: HOSTILE[2]}},
        environment={HOSTILE[0]: HOSTILE[1]},
        command=HOSTILE[1],
        loading_code=HOSTILE[0],
        notes=HOSTILE,
        causes=fake_causes((*HOSTILE, "a", "b", "c")),
        explained=[fake_explained(name, name, HOSTILE[0]) for name in HOSTILE],
        suspects=replace(fake_suspects((*HOSTILE, "a", "b", "c")), remarks=HOSTILE),
        shown_suspects=fake_shown(fake_suspects((*HOSTILE, "a", "b", "c")), HOSTILE[0]),
        robustness=fake_robustness(),
    )
    page = Page(hostile)
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & {
        tag for tag, _ in page.elements
    }
    assert not [name for _, given in page.elements for name in given if name.startswith("on")]
    assert all(name in page.text for name in HOSTILE)
    assert "49" not in page.text.replace("{{ 7 * 7 }}", "").split("Notes")[-1]


def test_labels_to_look_at_are_shown_beside_similar_images():
    given = {"diagnosis": fake_diagnosis(layers=(("conv", 4),)), "comparison": None, "examples": ()}
    suspects = fake_suspects()
    page = Page(page_of(**given, suspects=suspects, shown_suspects=fake_shown(suspects)[:3]))
    said = " ".join(page.text.split())
    assert "4 of 1,200 training images have a label that is more probably wrong than right" in said
    assert "Of these labels 80 % are expected to be wrong, of all labels at least 4 %" in said
    assert "labels.csv" in said and "The first 3 are shown." in said and "Not looked at: fox." in said
    assert "airplane looks like bird : wrong with 95 %" in said.replace("bird:", "bird :")
    assert [given["alt"] for given in page.every("img")].count("An image of bird") == 2
    assert "Labels to look at" not in Page(page_of(**given)).text
    nothing = fake_suspects(number=0)
    said = Page(page_of(**given, suspects=nothing)).text
    assert "That any label of 1,200 training images is wrong is not proven." in said
    said = Page(page_of(**given, suspects=replace(nothing, share=0.021))).text
    assert "At least 2 % of the labels of 1,200 training images are wrong, but of none" in said
    said = Page(page_of(**given, suspects=replace(nothing, images=0, accuracy=math.nan))).text
    assert "not proven" not in said and "Not looked at: fox." in said and "nan" not in said.lower()


def test_the_page_stands_alone(page):
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert {"http-equiv": "Content-Security-Policy", "content": policy} in page.every("meta")
    for _, given in page.elements:
        assert given.get("src", "data:image/").startswith("data:image/")
        assert given.get("href", "#").startswith("#")
    images = page.every("img")
    assert len(images) == 3 + 1 + 1 + 1 + 3 + 2 * 3
    assert all(given["alt"] and int(given["width"]) > 0 for given in images)


@pytest.mark.slow
def test_the_page_stays_small():
    assert len(page_of().encode()) < 2_000_000
    classes = tuple(f"category {number}" for number in range(300))
    layers = tuple((f"features.{number}", 512) for number in range(20))
    diagnosis = fake_diagnosis(classes, layers=layers)
    kinds = ("repaired", "broken", "still wrong", "annotated")
    examples = [fake_example(kinds[number % 4], number, size=300) for number in range(60)]
    html = page_of(diagnosis=diagnosis, comparison=fake_comparison(classes=classes), examples=examples)
    assert len(html.encode()) < LARGEST_PAGE
    assert "24 more images are left out" in html
    assert "The heat maps of 4 earlier layers are left out" in html
    assert "The 100 least accurate of 300 categories are shown" in html


def test_both_maps_of_a_pair_share_one_scale(monkeypatch):
    seen = []
    overlay = figures.overlay
    monkeypatch.setattr(figures, "overlay", lambda *given: seen.append(given[2]) or overlay(*given))
    one = replace(
        fake_example("repaired", 1), map_before=np.full((64, 64), 0.25), map_after=np.full((64, 64), 2.0)
    )
    assert one.maximum == 2.0
    page_of(examples=[one])
    assert seen.count(2.0) == 2


def test_small_images_keep_sharp_pixels_and_show_the_outline():
    import base64
    import io

    from PIL import Image

    pixels = np.random.default_rng(0).uniform(size=(32, 32, 3))
    mask = np.zeros((32, 32), dtype=bool)
    mask[8:24, 8:24] = True

    def decoded(picture):
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.source.split(",")[1]))))

    plain, outlined = decoded(photograph(pixels, None, "a")), decoded(photograph(pixels, mask, "a"))
    assert plain.shape == (160, 160, 3)
    np.testing.assert_array_equal(plain[2::5, 2::5], np.round(255 * pixels).astype(np.uint8))
    assert (outlined[40, 40:120] == 255).all() and (outlined[39, 40:120] == 30).all()
    np.testing.assert_array_equal(outlined[41:119, 41:119], plain[41:119, 41:119])


def test_with_many_categories_the_telling_ones_are_kept():
    diagnosis = fake_diagnosis(empty=(2,))
    fewer = diagnosis.least_accurate(3)
    worst = sorted(np.argsort(diagnosis.accuracy)[:3])
    assert fewer.classes == tuple(CLASSES[one] for one in worst)
    np.testing.assert_array_equal(fewer.layers[0].correlation, diagnosis.layers[0].correlation[worst])
    assert diagnosis.least_accurate(8) is diagnosis
    gains = fake_comparison().splits["shifted"].first.gain_per_category
    kept = fake_comparison().most_changed("shifted", 4).splits["shifted"].first.gain_per_category
    ranked = sorted(gains, reverse=True)
    assert list(kept) == ranked[:2] + ranked[-2:]


def test_numbers_read_well():
    assert [number(one) for one in (None, math.nan, 0.04, -3.25, 12345.0, math.inf)] == [
        "-",
        "-",
        "0.0",
        "−3.2",
        "12,345.0",
        "∞",
    ]
    assert [signed(one) for one in (1.26, -1.26, math.nan, -math.inf)] == ["+1.3", "−1.3", "-", "−∞"]
    assert signed(-0.01) == "−0.0"  # an interval from −0.0 still crosses zero
    assert [share(one) for one in (0.523, None, math.nan)] == ["52 %", "-", "-"]
    assert [plain_value(one) for one in (1.0, ["a", 2], None, True, "x")] == ["1", "a, 2", "-", "True", "x"]


def test_every_arm_is_in_the_table_and_hostile_names_are_text():
    comparison = with_more_arms(fake_comparison(), ("swap", "<img src=x onerror=alert(1)>"))
    text = page_of(comparison=comparison)
    assert "&lt;img src=x onerror=alert(1)&gt;" in text and "<img src=x" not in text
    assert "(Holm)" in text and text.count('<th scope="row">swap</th>') == len(comparison.splits)
    assert "Worst category in any split" in text and "about four cases of five" in text


def test_the_trials_of_a_search_are_shown_with_whose_weights_to_use():
    rungs = [
        {
            "epochs": 1,
            "scores": {"control": {"score": 60.04}, "swap": {"score": 61.0}, "dfr": {"score": 59.0}},
        },
        {"epochs": 2, "scores": {"control": {"score": 62.0}, "swap": {"score": 61.5}}},
    ]
    handed = {"use": "control", "arm": "swap", "reason": "on validation: control 62.0, swap 61.5"}
    trials = {"select": "mean", "rungs": rungs, "chosen": {"name": "swap"}, "handed_back": handed}
    page = Page(page_of(trials=trials))
    assert "How the remedy was chosen" in page.text and "swap chosen" in page.text
    assert "use the weights of control, since swap did not beat both base and control" in page.text
    assert "60.0" in page.text and "swapped across categories" in page.text
    assert "How the remedy was chosen" not in Page(page_of()).text


def test_column_heads_explain_themselves_in_the_words_of_the_glossary():
    page = Page(page_of(causes=fake_causes(), explained=(fake_explained(),)))
    titles = [given["title"] for name, given in page.elements if name == "th" and "title" in given]
    sentences = set(GLOSSARY.values()) | {f"{GLOSSARY['repaired']} {GLOSSARY['broken']}"}
    assert set(titles) <= sentences
    for term in ("arm", "gain", "p-value", "verdict", "cause", "correlated", "evidence on background"):
        assert GLOSSARY[term] in titles, term
