"""Write what a run is about before anything else, so that nobody goes on with it on other inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torchdoctor.case.preparation import Case, environment
from torchdoctor.case.settings import settings_record
from torchdoctor.diagnosis.diagnose import state_sha256
from torchdoctor.runs.files import sha256_of, write_json, write_yaml
from torchdoctor.runs.folder import ENVIRONMENT


def start_run(folder: Path, verb: str, case: Case) -> None:
    """Write what the run is and where it runs."""
    for name, record in identity_of(folder, verb, case).items():
        (write_yaml if name.endswith(".yaml") else write_json)(folder / name, record)
    write_json(folder / ENVIRONMENT, environment())


def identity_of(folder: Path, verb: str, case: Case) -> dict[str, dict[str, object]]:
    """Return what makes a run the same run, by the file that holds it: `RunFolder.resume` compares them."""
    return {
        "config.yaml": run_record(folder, verb, case),
        "data.json": case.facts,
        "inputs.json": {
            "weights": {"model_sha256": state_sha256(case.model)},
            "diagnosis": _files_of(case.settings.diagnosis),
            "data": case.data.fingerprints,
        },
    }


def _files_of(run: str | None) -> dict[str, str] | None:
    """Return the sha256 of the files of the diagnosis in another run."""
    if run is None:
        return None
    files = sorted(one for one in (Path(run) / "diagnosis").glob("diagnosis.*") if one.is_file())
    return {one.name: sha256_of(one) for one in files}


def run_record(folder: Path, verb: str, case: Case) -> dict[str, object]:
    """Return what config.yaml holds of a run."""
    return settings_record(verb, replace(case.settings, out=str(folder)))
