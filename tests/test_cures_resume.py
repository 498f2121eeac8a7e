"""Cures survive kill -9: what edits the network afterwards, and the choice of the learning rate."""

from __future__ import annotations

import pytest

from processes import killed_at
from test_resume import KILLED, results, settings
from torchdoctor.case.defaults import check_remedies
from torchdoctor.case.preparation import prepare
from torchdoctor.files.reading import read_json
from torchdoctor.runs.folder import open_run
from torchdoctor.treatment import learning_rate
from torchdoctor.treatment.heads import linear_head
from torchdoctor.treatment.learning_rate import rates_of
from torchdoctor.treatment.recipe import Recipe
from torchdoctor.types import InputError
from torchdoctor.verbs.forecast import plan
from torchdoctor.verbs.treat import run_treat

ARMS = ("control", "balance", "batchnorm", "sam")


@pytest.fixture(scope="module", autouse=True)
def short_trainings():
    """Try every learning rate out in four steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning_rate, "STEPS", 4)
        yield


@pytest.fixture(scope="module")
def cured(short_trainings, trained, photos, tmp_path_factory):
    """A treatment with a measured rate that was never interrupted, and how to run the same elsewhere."""
    folder = tmp_path_factory.mktemp("cured") / "run"

    def at(out):
        asked = settings(trained, photos, out, arms=ARMS, seeds=1, learning_rate="measured")
        return lambda resume=False: run_treat(asked, resume=resume)

    outcome = at(folder)()
    return results(folder), at, folder, outcome


def test_the_rate_is_measured_once_and_every_edit_leaves_facts(cured):
    _, _, folder, outcome = cured
    record = read_json(folder / "learning_rate.json")
    assert record["steps"] == 16 and record["chosen"] in rates_of(Recipe())
    assert [one["learning_rate"] for one in record["tried"]] == list(rates_of(Recipe()))
    arms = {arm.name: arm for arm in outcome.treatment.arms}
    assert set(arms["balance"].facts[0]) == {"tau", "balanced_validation_accuracy"}
    assert arms["sam"].passes > arms["sam"].steps == arms["control"].passes


def test_a_dry_run_counts_the_short_trainings_and_a_first_training_has_none(trained, photos, tmp_path):
    asked = settings(trained, photos, tmp_path / "run", arms=ARMS, learning_rate="measured")
    assert plan(asked, "treat")["seconds_by_stage"]["learning rate"] >= 0
    with pytest.raises(InputError, match="'measured' is of treat and checkup"):
        prepare(asked, "train", needs_weights=False)


def test_a_network_without_what_a_remedy_needs_is_refused_before_the_diagnosis(trained, photos, tmp_path):
    case = prepare(settings(trained, photos, tmp_path / "run"), "treat")
    layer = case.model.get_submodule(linear_head(case.model, [case.data.train.first_batch(0)]))
    layer.bias = None
    with pytest.raises(InputError, match="'balance' needs a network whose logits"):
        check_remedies(settings(trained, photos, tmp_path / "run", arms=ARMS), case.model, case.data)


PLACES = ["after/learning_rate.json#2", "before/model.safetensors#2"]
MORE_PLACES = [
    "before/learning_rate.json",
    "before/learning_rate.json#5",
    "sam/seed0/step2",
    "control/seed0/step1",
    "before/model.safetensors#3",
]


@pytest.mark.parametrize(
    "place", [*PLACES, *(pytest.param(one, marks=pytest.mark.slow) for one in MORE_PLACES)]
)
def test_a_treatment_with_cures_killed_anywhere_ends_the_same(cured, tmp_path, place, monkeypatch):
    monkeypatch.setenv("TORCHDOCTOR_CHECKPOINT_STEPS", "1")
    wanted, at, _, _ = cured
    run = at(tmp_path / "run")
    assert killed_at(place, run) == KILLED
    assert run(resume=True).exit_code == 0
    assert results(open_run(tmp_path / "run")) == wanted
