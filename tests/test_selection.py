"""The search for a remedy: its budget is kept, the best of each rung go on, and no harm is done."""

from __future__ import annotations

import json

import pytest

from torchdoctor.case.settings import Settings
from torchdoctor.treatment.search import Candidate, candidates, halve, ladder
from torchdoctor.types import InputError
from torchdoctor.verbs.search import Choice, plan_with_choice
from torchdoctor.verbs.search_budget import budget_steps


def test_candidates_without_masks_need_none():
    names = [one.name for one in candidates(["a", "b", "c"], has_masks=False)]
    assert names[0] == "channel-c-tau0.3" and not {"swap", "rrr"} & set(names)
    assert not any(name.startswith(("space", "both")) for name in names)
    masked = candidates(["a", "b", "c"], has_masks=True)
    assert masked[0].name == "swap" and len({one.name for one in masked}) == len(masked) == 19
    assert "dfr" not in [one.name for one in candidates(["a"], True, ends_linear=False)]


def test_the_ladder_halves_the_candidates_and_doubles_the_epochs():
    assert ladder([1.0] * 8, 4, 10, None) == [(8, 1), (4, 2), (2, 4)]
    assert ladder([1.0] * 8, 10, 10, None) == [(8, 3), (4, 6), (2, 10)]
    assert ladder([1.0] * 8, 10, 10, 90.0) == [(2, 3)]  # a quarter of the length, for as many as that allows
    assert ladder([1.0] * 8, 10, 10, 80.0) == [(2, 1)]
    assert ladder([1.0] * 3, 1, 10, None) == [(3, 1), (2, 1)]


@pytest.mark.parametrize("budget", [60, 100, 200, 500, 1000])
@pytest.mark.parametrize("dear", [1.0, 2.5])
def test_the_ladder_keeps_to_its_budget(budget, dear):
    prices = [1.0, dear] * 9
    rungs = ladder(prices, 5, 10, float(budget * dear))
    dearest = sorted(prices[: rungs[0][0]], reverse=True)
    assert sum((1 + sum(dearest[:number])) * epochs for number, epochs in rungs) * 10 <= budget * dear
    with pytest.raises(InputError, match="the budget of 20 steps does not reach"):
        ladder(prices, 5, 10, 20.0)


def test_a_dear_candidate_costs_places():
    assert ladder([1.0] * 8, 1, 10, 180.0)[0][0] > ladder([1.0] * 7 + [20.0], 1, 10, 180.0)[0][0] == 7


def test_the_best_of_each_rung_go_on():
    pool = [Candidate(name) for name in "abcd"]
    seen = []

    def run(number, epochs, tried):
        seen.append((number, epochs, [one.name for one in tried]))
        scores = {"control": 99.0, "a": 1.0, "b": 4.0, "c": float("nan"), "d": 3.0}
        return {name: scores[name] for name in ["control", *(one.name for one in tried)]}

    rungs = halve(pool, ladder([1.0] * 4, 4, 1, None), run)
    assert seen == [(0, 1, ["a", "b", "c", "d"]), (1, 2, ["b", "d"])]
    assert rungs[-1].ranking[0] == "b" and rungs[0].ranking == ["b", "d", "a", "c"]


def test_budgets_are_minutes_or_steps():
    assert budget_steps(None, lambda: 1.0) is None
    assert budget_steps("500steps", lambda: 1 / 0) == 500
    assert budget_steps("2", lambda: 0.5) == 240
    for wrong in ("soon", "-3", "0"):
        with pytest.raises(InputError, match="expected minutes, such as 20, or steps"):
            budget_steps(wrong, lambda: 1.0)


@pytest.mark.slow
def test_checkup_auto_chooses_and_says_whose_weights_to_use(command, trained, photos, tmp_path):
    weights = trained / "model.safetensors"
    common = ("checkup", "--auto", "--weights", weights, "--data", f"folder:{photos}")
    code, out, err = command(
        *common, "--out", "run", "--epochs", "1", "--seeds", "1", "--batch-size", "8", "--confidence", "0.3",
        "--budget", "60steps", "--json",
    )  # fmt: skip
    assert code in (0, 3, 4), err
    record = json.loads(out)
    trials = json.loads((tmp_path / "run" / "trials.json").read_text())
    chosen = trials["chosen"]["name"]
    assert trials["select"] == "iid" and chosen in trials["rungs"][-1]["scores"]
    assert record["handed_back"] == trials["handed_back"]
    assert record["handed_back"]["use"] in ("base", "control", record["handed_back"]["arm"])
    assert not (tmp_path / "run" / "trials").exists()
    code, _, err = command(*common, "--out", "other", "--select", "swapped")
    assert code == 2 and "--select 'swapped' swaps the backgrounds" in err
    assert not (tmp_path / "other").exists()


def test_treated_stands_for_the_best_constraints_only_where_it_was_listed():
    swap, space = Candidate("swap"), Candidate("space-b", ("space layers=b",), 3.0)
    default, listed = Settings(), Settings(arms=("control", "dfr", "treated"))
    assert plan_with_choice(default, Choice(swap, space), 0).arms == ("control", "swap")
    found = plan_with_choice(listed, Choice(swap, space), 0)
    assert found.arms == ("control", "swap", "dfr", "treated")
    assert (found.constraints, found.tau) == (("space layers=b",), 3.0)
    assert plan_with_choice(listed, Choice(swap), 0).arms == ("control", "swap", "dfr")
    found = plan_with_choice(default, Choice(space, space), 0)
    assert (found.arms, found.constraints, found.tau) == (("control", "treated"), ("space layers=b",), 3.0)
