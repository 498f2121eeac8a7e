"""Results save and load exactly, say in a few lines what they hold, and draw themselves."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file

from fake_results import (
    fake_causes,
    fake_comparison,
    fake_diagnosis,
    fake_explanation,
    fake_layer,
    fake_robustness,
    fake_suspects,
    with_first,
    with_more_arms,
)
from torchdoctor.diagnosis.causes_result import MEANINGS, Causes, ErrorCause
from torchdoctor.diagnosis.explanation_result import Explanation
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.robustness_result import Robustness
from torchdoctor.display.cards import Card
from torchdoctor.display.style import BLUE, GREY, ORANGE
from torchdoctor.proof.result import Comparison
from torchdoctor.proof.split_result import Gain
from torchdoctor.treatment.result import Arm, Treatment
from torchdoctor.types import InputError

HOSTILE = "<img src=x onerror=alert(1)>"
HISTORY = (
    {"epoch": 0.0, "loss": math.nan, "channel": 0.25},
    {"epoch": 1.0, "loss": math.inf, "channel": -math.inf},
    {"epoch": 2.0, "loss": 0.1, "validation_accuracy": 100 / 3},
)


def fake_treatment(names: tuple[str, ...] = ("control", "treated"), seeds: int = 2) -> Treatment:
    """Return a treatment whose arms hold different weights and histories."""
    arms = [
        Arm(
            name, seed, {"fc.weight": torch.arange(6.0).view(2, 3) + 10 * seed + place, "n": torch.tensor(3)},
            tuple({**epoch, "channel": 1.0 + place + seed} for epoch in HISTORY), 40, 1 / 3 + seed,
            ((4, 7), (9,)) if place else (),
        )
        for seed in range(seeds)
        for place, name in enumerate(names)
    ]  # fmt: skip
    constraint = {"constraint": "channel", "layers": ["layer3.conv2"], "weight": 1 / 7, "tau": None}
    return Treatment(tuple(arms), (constraint,))


def complete_comparison() -> Comparison:
    """Return a comparison as `compare` makes it: every arm has a background share."""
    comparison = with_more_arms(fake_comparison(), ("swap",))
    splits = {
        name: replace(
            split,
            background_share={arm: split.background_share.get(arm) for arm in split.accuracy},
            calibration_error={**split.calibration_error, "swap": 1 / 3},
        )
        for name, split in comparison.splits.items()
    }
    return replace(comparison, splits=splits, reason="-0.3 points on `<b>`")


RESULTS: dict[str, Callable[[], Any]] = {
    "diagnosis": lambda: fake_diagnosis(empty=(2,)),
    "causes": fake_causes,
    "suspects": fake_suspects,
    "explanation": lambda: fake_explanation("cat", "dog"),
    "robustness": fake_robustness,
    "treatment": fake_treatment,
    "comparison": complete_comparison,
}
FILES = {
    "diagnosis": "diagnosis.json", "causes": "causes.json", "suspects": "suspects.json",
    "explanation": "explanation.json",
    "robustness": "robustness.json", "treatment": "prescription.json", "comparison": "compare.json",
}  # fmt: skip


def assert_same(ours: Any, theirs: Any, place: str = "result") -> None:
    """Assert that two results are of the same types and equal to the last bit, NaN beside NaN."""
    assert isinstance(theirs, type(ours)), (place, type(ours), type(theirs))
    if is_dataclass(ours):
        for field in fields(ours):
            assert_same(getattr(ours, field.name), getattr(theirs, field.name), f"{place}.{field.name}")
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs) or (".state" in place and set(ours) == set(theirs)), place
        for name, value in ours.items():
            assert_same(value, theirs[name], f"{place}[{name!r}]")
    elif isinstance(ours, tuple | list):
        assert len(ours) == len(theirs), place
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(one, other, f"{place}[{number}]")
    elif isinstance(ours, np.ndarray | torch.Tensor):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, place
        assert np.array_equal(np.asarray(ours), np.asarray(theirs), equal_nan=ours.dtype.kind == "f") \
            if isinstance(ours, np.ndarray) else torch.equal(ours, theirs), place  # fmt: skip
    elif isinstance(ours, float) and math.isnan(ours):
        assert math.isnan(theirs), place
    else:
        assert ours == theirs, place


@pytest.mark.parametrize("kind", RESULTS)
def test_what_is_loaded_is_what_was_saved(kind, tmp_path):
    result = RESULTS[kind]()
    result.save(tmp_path / "new" / "place")
    assert_same(type(result).load(str(tmp_path / "new" / "place")), result)


def test_the_comparison_of_saved_and_loaded_would_see_a_difference():
    diagnosis = fake_diagnosis()
    with pytest.raises(AssertionError, match="theta"):
        assert_same(replace(diagnosis, theta=np.nextafter(0.5, 1)), diagnosis)
    with pytest.raises(AssertionError, match="channel"):
        assert_same(HISTORY[0], {**HISTORY[0], "channel": 0.250001})


numbers = some.floats(allow_nan=True, allow_infinity=False) | some.floats(-1, 1)
names = some.text(max_size=12)
errors_of_any_kind = some.tuples(names, names, numbers, some.sampled_from(list(MEANINGS)), numbers)


@settings(max_examples=25, deadline=None)
@given(some.lists(errors_of_any_kind, max_size=4), numbers)
def test_causes_of_any_names_and_numbers_come_back(tmp_path_factory, errors, accuracy):
    errors = tuple(
        ErrorCause(place, label, prediction, confidence, cause, {cause: 1.0}, {"x": number})
        for place, (label, prediction, confidence, cause, number) in enumerate(errors)
    )
    causes = Causes(errors, len(errors), accuracy)
    folder = tmp_path_factory.mktemp("causes")
    causes.save(folder, names={place: f"{place}.png" for place in range(4)})
    assert_same(Causes.load(folder), causes)


@pytest.mark.parametrize(
    "gain",
    [
        Gain(5.0, -math.inf, math.inf, 0.4, "images only", 0.4, math.inf),  # of a single image
        Gain(math.nan, math.nan, math.nan, math.nan, "-", math.nan, math.inf),  # of none
        Gain(0.1 + 0.2, -1.0, 2.0, 0.5, "images and 3 seeds"),  # `detectable` not worked out
    ],
)
def test_a_gain_without_bounds_comes_back(gain, tmp_path):
    comparison = complete_comparison()
    split = with_first(comparison.splits["shifted"], gain=gain, gain_per_category=(math.nan,) * 8)
    comparison = replace(comparison, splits={**comparison.splits, "shifted": split})
    comparison.save(tmp_path)
    assert_same(Comparison.load(tmp_path), comparison)


def test_a_diagnosis_of_exact_evidence_and_views_of_arrays_comes_back(tmp_path):
    diagnosis = fake_diagnosis()
    layer = replace(diagnosis.layers[0], correlation=np.asfortranarray(diagnosis.layers[0].correlation))
    diagnosis = replace(diagnosis, draws="exact", layers=(layer,), confusion=diagnosis.confusion[::-1])
    diagnosis.save(tmp_path)
    assert_same(Diagnosis.load(tmp_path), diagnosis)


def test_an_explanation_without_a_diagnosis_comes_back(tmp_path):
    explanation = fake_explanation("cat", "dog")
    kernels = tuple(replace(kernel, usual=None, deviations=None) for kernel in explanation.kernels)
    explanation = replace(
        explanation, label=None, label_confidence=None, kernels=kernels, check=None, alike={},
        background_share=None, usual_background_share=None, compared=False,
    )  # fmt: skip
    explanation.save(tmp_path)
    assert_same(Explanation.load(tmp_path), explanation)


def test_arms_come_back_by_seed_and_then_as_they_were_run(tmp_path):
    treatment = fake_treatment(("control", "treated", "a,b $x$"), seeds=11)  # "seed10" sorts before "seed2"
    treatment.save(tmp_path, card={"name": "small"})
    assert_same(Treatment.load(tmp_path), treatment)
    assert json.loads((tmp_path / "a,b $x$/seed10/model.json").read_text()) == {"name": "small"}


@pytest.mark.parametrize("name", ["../outside", "a/b", "..", ".", "", "a\\b"])
def test_an_arm_whose_name_is_no_folder_is_not_saved(name, tmp_path):
    with pytest.raises(InputError, match="its name cannot be the name of a folder"):
        fake_treatment(("control", name)).save(tmp_path / "inner")
    assert list(tmp_path.iterdir()) == []


# What version 0.1.0 wrote: entries that are not read back, nulls for what JSON cannot hold.
OLD_CAUSES = """{"errors": [{"id": 7, "label": "cat", "prediction": "dog", "confidence": 0.75,
  "cause": "background",
  "numbers": {"sure_and_right": null, "label_confidence": 0.25}, "image": "cat-7.png"}],
 "images": 40, "accuracy": 97.5, "split": "validation", "counts": {"background": 1}}"""
OLD_COMPARE = """{"verdict": "no evidence", "reason": "too few", "exit_code": 4, "arm": "treated",
 "primary": "test",
 "min_gain": 0.0, "max_loss": 1.0, "seeds": [0], "steps": 20, "seconds": {"control": [1.5], "treated": [2.5]},
 "classes": ["cat", "dog"], "worst_group": {"base": 50.0, "control": 50.0, "treated": 60.0},
 "images": {"test": 1},
 "arms": {"base": {"test": {"accuracy": [70.0], "per_category": [50.0, null], "worst_category": 50.0,
   "background_share": null, "calibration_error": null}},
  "control": {"test": {"accuracy": [71.0], "per_category": [50.0, null], "worst_category": 50.0,
   "background_share": 0.5, "calibration_error": 3.0}},
  "treated": {"test": {"accuracy": [72.0], "per_category": [60.0, null], "worst_category": 60.0,
   "background_share": 0.25, "calibration_error": 2.0}}},
 "against_control": {"test": {"treated": {"gain": {"mean": 1.0, "low": null, "high": null, "p_value": 1.0,
   "variance_from": "images only (one seed)", "p_adjusted": 1.0, "detectable": null},
  "gain_per_category": [10.0, null], "verdict": "no evidence", "repaired": [3], "broken": [],
  "mcnemar": [1.0]}}}}"""
OLD_HISTORY = """{"epochs": [{"epoch": 0.0, "loss": null, "validation_accuracy": 50.0}], "steps": 20,
 "seconds": 1.235,
 "skipped_batches": [[1, 2]], "sha256": "SUM"}"""


def test_files_of_the_version_before_load(tmp_path):
    (tmp_path / "causes.json").write_text(OLD_CAUSES)
    (tmp_path / "compare.json").write_text(OLD_COMPARE)
    numbers = {"sure_and_right": math.nan, "label_confidence": 0.25}
    error = ErrorCause(7, "cat", "dog", 0.75, "background", {}, numbers)
    assert_same(Causes.load(tmp_path), Causes((error,), 40, 97.5))
    comparison = Comparison.load(tmp_path)
    gain = comparison.splits["test"].first.gain
    assert (gain.mean, gain.low, gain.high, gain.detectable) == (1.0, -math.inf, math.inf, math.inf)
    assert comparison.splits["test"].background_share == {"base": None, "control": 0.5, "treated": 0.25}
    assert comparison.splits["test"].calibration_error == {"control": 3.0, "treated": 2.0}
    assert math.isnan(comparison.splits["test"].per_category["base"][1])
    home = tmp_path / "treatment" / "control" / "seed0"
    fake_treatment().arms[0].save(home)
    total = json.loads((home / "history.json").read_text())["sha256"]
    (home / "history.json").write_text(OLD_HISTORY.replace("SUM", total))
    (tmp_path / "treatment/prescription.json").write_text('{"constraints": [], "arms": ["control"]}')
    (arm,) = Treatment.load(tmp_path / "treatment").arms
    assert (arm.steps, arm.seconds, arm.skipped) == (20, 1.235, ((1, 2),))
    assert math.isnan(arm.history[0]["loss"]) and arm.history[0]["validation_accuracy"] == 50.0


def test_the_keys_of_the_files_stay(tmp_path):
    complete_comparison().save(tmp_path, exit_code=3)
    fake_causes().save(tmp_path, names={number: f"{number}.png" for number in range(4)})
    fake_diagnosis().save(tmp_path)
    fake_treatment().save(tmp_path)
    compare = json.loads((tmp_path / "compare.json").read_text())
    added = {"between_controls"}
    assert [key for key in compare if key not in added] == list(json.loads(OLD_COMPARE))
    assert compare["exit_code"] == 3
    for part in ("arms", "against_control"):
        inner, old = compare[part], json.loads(OLD_COMPARE)[part]
        while isinstance(inner, dict) and not {"accuracy", "gain"} & set(inner):
            inner, old = next(iter(inner.values())), next(iter(old.values()))
        assert [key for key in inner if key != "balanced_accuracy"] == list(old)
    causes = json.loads((tmp_path / "causes.json").read_text())
    # New keys may come, the old ones stay, in their order.
    assert [key for key in causes if key not in ("expected", "others")] == list(json.loads(OLD_CAUSES))
    error = causes["errors"][0]
    assert [key for key in error if key != "probabilities"] == list(json.loads(OLD_CAUSES)["errors"][0])
    assert sum(causes["expected"].values()) == pytest.approx(len(causes["errors"]))
    history = json.loads((tmp_path / "control/seed0/history.json").read_text())
    before = list(json.loads(OLD_HISTORY))
    assert list(history) == [*before[:4], "passes", "facts", *before[4:]]
    assert list(json.loads((tmp_path / "diagnosis.json").read_text())) == [
        "classes", "layers", "counts", "accuracy", "not_diagnosed", "evidence", "draws", "theta", "seed",
        "model_sha256", "sifting",
    ]  # fmt: skip


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], object], str, str]] = {
    "diagnosis": (lambda r: r["layers"][1].update(delta="wide"), "layers.1.delta is 'wide'", "number"),
    "causes": (lambda r: r["errors"][0].update(cause="bad luck"), "cause is 'bad luck'", "'background'"),
    "suspects": (lambda r: r["suspects"][1].pop("proposed"), "suspects.1.proposed is missing", ""),
    "explanation": (lambda r: r["kernels"][0].pop("kernel"), "kernels.0.kernel is missing", ""),
    "robustness": (lambda r: r.update(units="metres"), "units is 'metres'", "'absolute' or 'deviation'"),
    "treatment": (lambda r: r.update(arms="control"), "arms is 'control', expected", "array"),
    "comparison": (lambda r: r["images"].pop("same"), "split 'same' is in", "everywhere else"),
}  # fmt: skip


@pytest.mark.parametrize("kind", RESULTS)
def test_a_file_that_is_wrong_is_named_with_what_is_wrong(kind, tmp_path):
    result = RESULTS[kind]()
    result.save(tmp_path)
    file = tmp_path / FILES[kind]
    saved = json.loads(file.read_text())

    def refused(content: str | bytes | None) -> str:
        file.unlink() if content is None else file.write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
        with pytest.raises(InputError) as raised:
            type(result).load(tmp_path)
        assert repr(str(file)) in str(raised.value) and len(str(raised.value)) < 700 + len(str(file))
        return str(raised.value)

    damage, found, expected = DAMAGES[kind]
    damage(saved)
    said = refused(json.dumps(saved))
    assert found in said and expected in said
    assert "is missing" in refused('{"format": "of another program"}')
    assert "the whole file is [1, 2]" in refused("[1, 2]")
    for broken in ("", "{", b"\xff\xfe", "[" * 100_000):
        assert "cannot be read as JSON" in refused(broken)
    assert "is not there" in refused(None)


def test_arrays_that_do_not_fit_are_refused(tmp_path):
    diagnosis = fake_diagnosis()
    diagnosis.save(tmp_path)
    file = tmp_path / "diagnosis.safetensors"
    whole = load_file(file)
    for changed, said in (
        (
            {**whole, "1.drift": torch.zeros(95)},
            "1.drift has shape [95], expected 96 kernel",
        ),
        ({**whole, "0.level": torch.zeros(2, 2)}, "0.level has shape [2, 2], expected 128 kernel"),
        ({name: array for name, array in whole.items() if name != "2.quantiles"}, "no array '2.quantiles'"),
        ({**whole, "confusion": torch.zeros(3, 3)}, "diagnosis.json names 8"),
    ):
        save_file({name: array.contiguous() for name, array in changed.items()}, file)
        with pytest.raises(InputError) as raised:
            Diagnosis.load(tmp_path)
        assert said in str(raised.value) and str(file) in str(raised.value)
    file.write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"diagnosis\.safetensors' is damaged"):
        Diagnosis.load(tmp_path)


def test_a_treatment_with_a_damaged_or_strange_arm_is_refused(tmp_path):
    fake_treatment().save(tmp_path)
    (tmp_path / "control" / "seeds").mkdir()  # of no arm
    assert Treatment.load(tmp_path).names() == ("control", "treated")
    weights = tmp_path / "treated/seed1/model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"\0")
    with pytest.raises(InputError, match=r"seed1/model.safetensors' is missing or damaged"):
        Treatment.load(tmp_path)
    weights.write_bytes(content)
    shutil.copytree(tmp_path / "control", tmp_path / "swap")
    with pytest.raises(InputError, match=r"names the arms control, treated; .* another one, 'swap'"):
        Treatment.load(tmp_path)


SHORT = 1000  # characters: a few lines
SAYS = {
    "diagnosis": ("8 categories", "accuracy 80.2 %", "layer3.conv2", "128", "not diagnosed: boat"),
    "causes": ("4 errors in 200 images", "98.0 %", "background", "label looks wrong"),
    "suspects": ("4 of 1,200 training images", "80 %", "4.0 %", "airplane", "95 %", "Not looked at: fox."),
    "explanation": ("Predicted dog (80 %)", "The label is cat", "layer3.conv2[17]", "6.1"),
    "robustness": ("100 images", "8/255", "98.5 %"),
    "treatment": (
        "control, treated",
        "2 seeds",
        "constraint channel at layer3.conv2, weight 0.1429",
        "33.33",
    ),
    "comparison": ("helped", "5 seeds", "shifted (primary)", "+12.4 (+10.0 to +14.8)", "swap, %"),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_a_result_says_in_a_few_lines_what_it_holds(kind):
    result = RESULTS[kind]()
    text, html = repr(result), result._repr_html_()
    for part in SAYS[kind]:
        assert part in text, text
        assert part in html, html
    assert text == str(result)
    assert 100 < len(text) <= SHORT and len(text.splitlines()) <= 14
    assert max(map(len, text.splitlines())) <= 118
    assert len(html) < 6000 and "array(" not in text + html and "tensor(" not in text + html


def test_large_results_stay_short():
    classes = tuple(f"category number {number}" for number in range(1000))
    generator = np.random.default_rng(0)
    layer = fake_layer(1000, "features.0", 64, generator, ())
    many = tuple(
        replace(layer, name=f"features.{number}", flags=("flat", "dead") * 40) for number in range(50)
    )
    diagnosis = replace(fake_diagnosis(classes, empty=tuple(range(600)), layers=(("x", 4),)), layers=many)
    text = repr(diagnosis)
    assert "at 50 layers" in text and "and 44 more" in text and "and 596 more" in text and len(text) <= SHORT
    assert len(diagnosis._repr_html_()) < 6000 and "and 20 more" in diagnosis._repr_html_()
    for part in (*diagnosis.layers, diagnosis.sifting):
        assert len(repr(part)) < 300
    splits = {
        f"split {number}": split for number, split in enumerate([complete_comparison().splits["same"]] * 40)
    }
    comparison = replace(complete_comparison(), splits=splits, primary="split 0", reason="because " * 500)
    assert "and 34 more" in repr(comparison) and len(repr(comparison)) <= 1500
    treatment = fake_treatment(tuple(f"arm {number}" for number in range(30)), seeds=5)
    assert "30 arms (arm 0, arm 1, arm 2, arm 3 and 26 more)" in repr(treatment)
    assert "and 144 more" in repr(treatment) and len(repr(treatment)) <= SHORT


def test_the_parts_of_results_are_one_line():
    comparison, explanation = complete_comparison(), fake_explanation("cat", "dog")
    arm = fake_treatment().arms[1]
    assert repr(arm) == "Arm('treated', seed 0: 3 epochs, 40 steps, 0.3 s, 2 tensors)"
    assert repr(comparison.splits["shifted"].first) == (
        "ArmComparison(helped: +12.4 (+10.0 to +14.8) points, 83 images repaired, 19 broken)"
    )
    assert repr(comparison.splits["shifted"]).startswith(
        "SplitComparison(1,600 images: base 71.0 %, control 74."
    )
    layer = fake_diagnosis().layers[0]
    assert repr(layer) == (
        "LayerDiagnosis('layer3.conv2': 128 kernels, 8 categories, "
        f"{int(layer.correlated.any(0).sum())} kernels correlated with a category)"
    )
    assert repr(fake_diagnosis().sifting).startswith(
        "Sifting(16 images that speak for their category, 8 to ann"
    )
    assert "taken for 'bird' with 90 %, background" in repr(fake_causes().errors[0])
    assert repr(explanation.kernels[0]) == (
        "StandingOut(layer3.conv2[17]: evidence 2.5, 9.0 times the layer's mean, correlated with dog, cat)"
    )
    for part in (explanation.check, comparison.splits["same"].first.gain):
        assert len(repr(part)) < 250


def hostile_results() -> list[Any]:
    """Return results in which every name is a piece of HTML."""
    eight = tuple(f"{HOSTILE}{number}" for number in range(8))
    explanation = fake_explanation(HOSTILE, HOSTILE + "x")
    kernels = tuple(replace(kernel, layer=HOSTILE, owners=eight) for kernel in explanation.kernels)
    comparison = fake_comparison(classes=eight)
    return [
        fake_diagnosis(eight, empty=(2,), layers=((HOSTILE, 8), ("a\nb", 4))),
        replace(explanation, kernels=kernels),
        replace(
            comparison, splits={HOSTILE: comparison.splits["shifted"]}, primary=HOSTILE, arm="treated",
            reason=f"because {HOSTILE}",
        ),
        fake_treatment(("control", HOSTILE)),
        fake_suspects(eight),
    ]  # fmt: skip


@pytest.mark.parametrize("place", range(5))
def test_names_stay_text_in_notebooks(place):
    result = hostile_results()[place]
    html = result._repr_html_()
    assert "<img" not in html and "&lt;img src=x onerror=alert(1)&gt;" in html
    assert "<img src=x" in repr(result)
    assert all(line.isprintable() for line in repr(result).splitlines())


def test_a_card_escapes_all_of_its_parts_and_counts_what_it_leaves_out():
    card = Card(HOSTILE, ("a & b\n",), ("<b>", "n"), tuple((HOSTILE, str(number)) for number in range(33)))
    html = card.html()
    assert "<img" not in html and "<b>" not in html and "a &amp; b" in html and "and 3 more" in html
    lines = card.text().splitlines()
    assert lines[0] == HOSTILE and lines[1] == "  a & b" and lines[-1] == "  and 27 more" and len(lines) == 10


def drawn(figure: Any) -> Figure:
    """Check that this is a figure that can be drawn, outside of pyplot; return it."""
    assert type(figure) is Figure
    figure.draw_without_rendering()
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []
    return figure


def test_a_diagnosis_draws_its_layers_and_confusion():
    diagnosis = fake_diagnosis(empty=(2,))
    assert "layer1.conv2: 64 kernels" in drawn(diagnosis.correlation_figure()).axes[0].get_title(loc="left")
    axes = drawn(diagnosis.correlation_figure("layer2.conv2")).axes[0]
    assert axes.images[0].get_array().shape == (8, 96)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(diagnosis.classes)
    axes = drawn(diagnosis.confusion_figure()).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("called (columns in the order of the rows)", "category")
    axes = drawn(diagnosis.sparsity_figure()).axes[0]
    assert len(axes.collections) == 3 and len(axes.collections[0].get_offsets()) == 7
    with pytest.raises(InputError, match=r"'conv9' was not diagnosed; diagnosed: layer3.conv2, layer2.conv2"):
        diagnosis.correlation_figure("conv9")


def test_a_comparison_draws_its_primary_split_unless_another_is_named():
    comparison = complete_comparison()
    for name, figure in (
        ("shifted", comparison.category_gains_figure()),
        ("noise", comparison.category_gains_figure("noise")),
    ):
        gains = sorted(comparison.splits[name].first.gain_per_category, reverse=True)
        assert [bar.get_width() for bar in drawn(figure).axes[1].patches] == pytest.approx(gains)
    left, right = drawn(comparison.accuracy_figure()).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["shifted\n(primary)", "same", "noise"]
    assert right.get_title(loc="left") == "gain and 95 % interval, points"
    with pytest.raises(InputError, match="split 'test' was not compared; compared: shifted, same, noise"):
        comparison.category_gains_figure("test")


def test_a_treatment_draws_a_line_for_each_arm_and_seed():
    treatment = fake_treatment(seeds=3)
    (axes,) = drawn(treatment.history_figure("channel")).axes
    lines = [(line.get_color(), list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert lines == [
        (colour, [0.0, 1.0, 2.0], [value] * 3)
        for colour, first in ((ORANGE, 1.0), (BLUE, 2.0))
        for value in (first, first + 1, first + 2)
    ]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["control", "treated"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "channel")
    (axes,) = drawn(treatment.history_figure("validation_accuracy")).axes  # after the last epoch alone
    assert list(axes.lines[0].get_xdata()) == [2.0] and axes.get_ylabel() == "validation accuracy"
    assert drawn(treatment.history_figure()).axes[0].get_ylabel() == "loss"
    with pytest.raises(
        InputError, match="no history holds 'spatial'; they hold: loss, channel, validation_acc"
    ):
        treatment.history_figure("spatial")


def test_causes_are_drawn_with_the_most_frequent_first():
    (axes,) = drawn(fake_causes().figure()).axes
    assert [bar.get_width() for bar in axes.patches] == [2, 1, 1]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "background",
        "unknown",
        "label looks wrong",
    ]
    assert [bar.get_facecolor() for bar in axes.patches] == [to_rgba(BLUE), to_rgba(GREY), to_rgba(BLUE)]
    assert axes.get_title(loc="left") == "4 errors in 200 images, by cause" and axes.get_xlabel() == "errors"
    assert drawn(Causes((), 10, 100.0).figure()).axes[0].patches[:] == []


def test_an_explanation_draws_the_image_it_is_of():
    explanation = fake_explanation("cat", "dog")
    image = np.random.default_rng(0).random((32, 32, 3))
    axes = drawn(explanation.figure(image)).axes
    np.testing.assert_array_equal(axes[0].images[0].get_array(), image)
    assert axes[1].get_title(loc="left") == "evidence at layer3.conv2"
    for wrong in (image[:16], image[..., 0], image.transpose(2, 0, 1)):
        with pytest.raises(InputError, match=r"image has shape \[.*\], expected \[32, 32, 3\]"):
            explanation.figure(wrong)


def test_noise_curves_are_drawn_with_their_unit():
    robustness = fake_robustness()
    (axes,) = drawn(robustness.figure()).axes
    assert axes.get_xlabel() == "noise range, units of the map" and axes.get_ylabel() == "% of 100 images"
    (axes,) = drawn(replace(robustness, units="deviation").figure()).axes
    assert axes.get_xlabel() == "noise range, standard deviations of the layer's map"
    assert isinstance(robustness, Robustness)


def test_parts_of_a_diagnosis_can_be_drawn():
    diagnosis = fake_diagnosis()
    fewer = diagnosis.least_accurate(3)
    assert len(fewer.classes) == 3 and max(fewer.accuracy) <= sorted(diagnosis.accuracy)[2] + 60
    chosen = [diagnosis.classes.index(name) for name in fewer.classes]
    np.testing.assert_array_equal(fewer.layers[1].quantiles, diagnosis.layers[1].quantiles[:, chosen])
    np.testing.assert_array_equal(fewer.layers[1].agreement, diagnosis.layers[1].agreement[:, chosen])
    assert drawn(fewer.confusion_figure()).axes[0].images[0].get_array().shape == (3, 3)
