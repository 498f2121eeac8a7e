"""The straight line: a module imports only from its left, and the public names are few."""

from __future__ import annotations

import ast
from pathlib import Path

import torchdoctor

PACKAGE = Path(torchdoctor.__file__).parent
LINE = (
    "types", "noise", "networks", "gradients", "layers", "checks", "masks", "sifting", "memory",
    "closed_form", "evidence", "rows", "measurement", "diagnosis", "contrast", "silencing", "swapping",
    "explanation", "grad_cam", "causes", "robustness", "constraints", "shortcuts", "mean_evidence",
    "passes", "penalties", "courses", "training", "prescription", "remedies", "sources", "treatment",
    "selection", "proof", "evaluation", "figures", "diagnosis_figures", "pictures", "error_cards", "report",
    "annotations", "models", "data", "engine", "summary", "terminal", "cli_options", "cli_models", "cli_data",
    "cli_diagnosis", "cli",
)  # fmt: skip


def imported(file: Path) -> set[str]:
    """Return the parts of the package that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "torchdoctor":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {one.name.split(".")[1] for one in node.names if one.name.startswith("torchdoctor.")}
    return found - {"__version__"}


def test_every_module_stands_in_the_line():
    parts = {one.stem if one.is_file() else one.name for one in PACKAGE.iterdir()}
    assert parts - {"__init__", "__main__", "__pycache__", "report.html"} == set(LINE)


def test_modules_import_only_from_their_left():
    wrong = []
    for file in PACKAGE.rglob("*.py"):
        part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part in ("__init__", "__main__"):
            continue
        right = set(LINE[LINE.index(part) + 1 :])
        wrong += [f"{file.name} imports {one}" for one in imported(file) & right]
    assert wrong == []


def test_the_core_knows_no_catalogue():
    core = LINE[: LINE.index("annotations")]
    for name in core:
        assert not imported(PACKAGE / f"{name}.py") & {"models", "data", "annotations", "engine"}, name


def test_files_stay_short():
    long = {one.name: len(one.read_text().splitlines()) for one in PACKAGE.rglob("*.py")}
    assert {name: lines for name, lines in long.items() if lines > 350} == {}


def test_public_names():
    assert sorted(torchdoctor.__all__) == [
        "Batch", "Comparison", "Constraint", "Course", "Diagnosis", "InputError", "ModelDoctorError",
        "Recipe", "Treatment", "candidate_layers", "check_model", "classification_terms", "compare",
        "default_layers", "diagnose", "explain", "find_causes", "load_data", "load_model",
        "measure_robustness", "survey_layers", "treat",
    ]  # fmt: skip
    assert all(hasattr(torchdoctor, name) for name in torchdoctor.__all__)
