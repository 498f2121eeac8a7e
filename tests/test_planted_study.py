"""The program that plants faults and measures cures: what it plants, what it prints, and what rests on it."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.study import (
    json_lines,
    people,
    person,
    photo_causes,
    planted,
    suspects,
    token_networks,
    unplanted,
)  # fmt: skip
from benchmarks.study.planted_stages import simulated_answers
from torchdoctor.diagnosis.cause_rules import PRECISION
from torchdoctor.diagnosis.suspects_result import Suspect, Suspects
from torchdoctor.treatment.effects import EFFECTS, effect_of

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "planted.jsonl"
SMALL = planted.Size(pixels=16, images=240, checked=80, tested=80, base_epochs=1, epochs=1, seeds=1)


def test_the_effects_that_reports_name_are_those_of_the_results():
    assert planted.effects(json_lines.read(RESULTS)) == EFFECTS
    for cause, effect in EFFECTS.items():
        assert effect.low <= effect.gain <= effect.high and effect.networks >= 3, cause
        assert f"{effect.gain:+.1f} points" in effect_of(cause)
    assert effect_of("unknown") == ""


def test_the_tables_of_the_documentation_are_those_of_the_results():
    page = (ROOT / "docs" / "when-it-helps.md").read_text()
    lines = {name: json_lines.read(RESULTS.with_name(f"{name}.jsonl")) for name in (
        "planted", "planted_networks", "planted_photos", "planted_cures", "unplanted",
    )}  # fmt: skip
    tables = [
        planted.table(lines["planted"]), planted.table(lines["planted_photos"]),
        planted.cures_table(lines["planted_cures"]), unplanted.table(lines["unplanted"]),
        *(
            planted.table([one for one in lines["planted_networks"] if one["network"] == network])
            for network in ("plain", "separable")
        ),
    ]  # fmt: skip
    for table in tables:
        rows = table.splitlines()
        assert len(rows) > 3 and [row for row in rows if row not in page] == []


def test_the_table_of_causes_on_photographs_is_that_of_the_results_without_what_was_chosen_on():
    page = (ROOT / "docs" / "concepts.md").read_text()
    lines = json_lines.read(RESULTS.with_name("photo_causes.jsonl"))
    rows = photo_causes.table(lines).splitlines()
    assert len(rows) > 10 and [row for row in rows if row not in page] == []
    chosen_on = [line for line in lines if photo_causes.calibrated_on(line)]
    assert chosen_on and photo_causes.table(lines[:0] + chosen_on).count("\n") == 2
    measured = photo_causes.shares([line for line in chosen_on if line["data"] != "cifar10"])
    for cause in ("rare category", "close categories", "under-fitted", "background", "over-fitted"):
        assert round(measured[cause], 2) == PRECISION[cause], cause
        assert f"| {PRECISION[cause]:.2f} |" in page.split(f"| {cause} |")[1].splitlines()[0]


def test_tables_of_other_studies_are_those_of_the_results():
    for study, page in (
        (people, "concepts.md"), (suspects, "concepts.md"), (token_networks, "when-it-helps.md"),
        (person, "how-to/review.md"),
    ):  # fmt: skip
        name = study.__name__.rpartition(".")[2]
        rows = study.table(json_lines.read(RESULTS.with_name(f"{name}.jsonl"))).splitlines()
        written = (ROOT / "docs" / page).read_text()
        assert len(rows) >= 4 and [row for row in rows if row not in written] == []


def test_lines_are_printed_and_appended_and_read_by_a_later_run(tmp_path, capsys):
    file = tmp_path / "lines.jsonl"
    assert json_lines.read_finished(None) == json_lines.read_finished(file) == []
    with pytest.raises(FileNotFoundError):
        json_lines.read(file)
    json_lines.append({"seed": 0}, None)
    json_lines.append({"seed": 1}, file)
    json_lines.write({"seed": 2, "gain": 0.5}, file)
    json_lines.write({"seed": 3}, None)
    assert capsys.readouterr().out == '{"seed": 2, "gain": 0.5}\n{"seed": 3}\n'
    assert file.read_text() == '{"seed": 1}\n{"seed": 2, "gain": 0.5}\n'
    assert json_lines.read(file) == json_lines.read_finished(file) == [{"seed": 1}, {"seed": 2, "gain": 0.5}]


def counts(fault, seed=3, images=2000):
    plain = planted.loader(seed, 0, images, 1 / 8, SMALL)
    faulty = planted.with_fault(plain, fault, seed)
    return plain.table.labels, faulty.table.labels, np.bincount(faulty.table.labels, minlength=8)


def test_what_is_planted_is_what_the_program_says():
    for fault, share in (("wrong labels", planted.NOISE), ("pairwise labels", planted.PAIRWISE)):
        right, given, _ = counts(fault)
        wrong = right != given
        assert abs(wrong.mean() - share) < 0.04
        if fault == "pairwise labels":
            assert set((given - right)[wrong] % 8) == {1}
    _, _, rare = counts("rare category")
    assert sorted(rare)[0] == 12 and sorted(rare)[1] > 200
    _, _, tail = counts("long tail")
    assert max(tail) / min(tail) == pytest.approx(planted.TAIL, rel=0.2)
    for fault in ("background", "scrambled", "under-fitted"):
        right, given, _ = counts(fault)
        assert (right == given).all()


def test_a_simulated_person_answers_for_a_twentieth_and_errs_one_time_in_ten():
    plain = planted.loader(3, 0, 4000, 1 / 8, SMALL)
    truth = plain.table.labels
    listed = Suspects(tuple(Suspect(one, "a", "b", 0.9) for one in range(1000)), 4000, 0.1, 80.0)
    faulty = planted.with_fault(plain, "wrong labels", 3)
    found = simulated_answers(listed, faulty, truth, len(planted.CLASSES), 3)
    assert found.given == 200
    said = {**found.labels, **{one: int(faulty.table.labels[one]) for one in found.kept}}
    mistaken = np.mean([said[one] != truth[one] for one in said])
    assert 0.04 < mistaken < 0.17


@pytest.mark.slow
def test_a_line_has_what_its_readers_look_for(tmp_path):
    line = planted.measured("residual", "long tail", 3, SMALL)
    assert {"fault", "clean", "faulty", "control", "chosen", "chosen_arm", "balanced"} <= set(line)
    assert set(line["balanced"]) == {"control", "chosen"} and line["arms"]["control"] == line["control"]
    (tmp_path / "lines.jsonl").write_text(json.dumps(line) + "\n")
    assert "long tail" in planted.table(json_lines.read(tmp_path / "lines.jsonl"))


PROGRAM = "benchmarks/study/planted.py"


@pytest.mark.parametrize("module", [False, True])
def test_the_program_runs_as_a_file_and_as_a_module(monkeypatch, capsys, module):
    """Run it in this process, which spares its imports; its packages are imported anew."""
    places = [place for place in sys.path if Path(place or ".").resolve() != ROOT]
    first = ROOT if module else (ROOT / PROGRAM).parent  # as Python does it
    monkeypatch.setattr(sys, "path", [str(first), *places])
    monkeypatch.setattr(sys, "argv", [PROGRAM, "--help"])
    for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit) as ended:
        if module:
            runpy.run_module("benchmarks.study.planted", run_name="__main__")
        else:
            runpy.run_path(str(ROOT / PROGRAM), run_name="__main__")
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "--quick" in said and "--seeds" in said


@pytest.mark.slow
def test_the_program_runs_in_a_process_of_its_own():
    for words in ([PROGRAM], ["-m", "benchmarks.study.planted"]):
        ended = subprocess.run(
            [sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert "--quick" in ended.stdout and "--seeds" in ended.stdout
