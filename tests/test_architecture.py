"""The straight line: rooms import one way, no module is in a cycle, files are short."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import torchdoctor

PACKAGE = Path(torchdoctor.__file__).parent
# files and display know no images and no networks. They stand early: a result saves and draws itself.
LINE = (
    "types", "glossary", "settings", "randomness", "processes", "files", "display", "images", "network",
    "evidence", "diagnosis", "treatment", "proof", "report", "data", "models", "runs", "case",
    "review", "verbs", "cli",
)  # fmt: skip
CORE = LINE[: LINE.index("data")]


def dotted(file: Path) -> str:
    """Return a file's module name below the package; a package's own name for its `__init__`."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {dotted(file): file for file in PACKAGE.rglob("*.py")}


def imported(file: Path) -> set[str]:
    """Return the modules of the package that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "torchdoctor":
            home = node.module.removeprefix("torchdoctor").removeprefix(".")
            for alias in node.names:
                inner = f"{home}.{alias.name}".removeprefix(".")
                names.add(inner if inner in MODULES else home)
        elif isinstance(node, ast.Import):
            names |= {
                alias.name.removeprefix("torchdoctor.")
                for alias in node.names
                if alias.name.startswith("torchdoctor.")
            }
    return names - {""}


def room(module: str) -> str:
    """Return the room that a module is in."""
    return module.split(".")[0]


def test_every_module_stands_in_a_room():
    assert {room(module) for module in MODULES} - {"__init__", "__main__"} == set(LINE)


def test_imports_run_one_way():
    wrong = [
        f"{module} imports {target}"
        for module, file in MODULES.items()
        if room(module) in LINE
        for target in imported(file)
        if LINE.index(room(target)) > LINE.index(room(module))
    ]
    assert wrong == []


def test_no_module_is_in_a_cycle():
    imports = {module: imported(file) - {module} for module, file in MODULES.items()}
    while free := [module for module, targets in imports.items() if not targets & set(imports)]:
        for module in free:
            del imports[module]
    assert imports == {}


def test_the_core_knows_no_catalogue():
    for module, file in MODULES.items():
        if room(module) in CORE:
            assert not {room(target) for target in imported(file)} - set(CORE), module


def test_files_and_functions_stay_short():
    long = {module: len(file.read_text().splitlines()) for module, file in MODULES.items()}
    assert {module: lines for module, lines in long.items() if lines > 350} == {}
    functions = [
        (f"{module}.{node.name}", node.end_lineno - node.lineno + 1)
        for module, file in MODULES.items()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    ]
    assert [name for name, lines in functions if lines > 60] == []


def test_public_names():
    assert sorted(torchdoctor.__all__) == [
        "Batch",
        "Causes",
        "Checkup",
        "Comparison",
        "Constraint",
        "Course",
        "DataSettings",
        "Diagnosis",
        "DiagnosisSettings",
        "Explanation",
        "InputError",
        "ModelDoctorError",
        "Recipe",
        "RobustnessSettings",
        "SecondOpinion",
        "Suspects",
        "TrainingPenalty",
        "Treatment",
        "TreatmentSettings",
        "candidate_layers",
        "check_model",
        "checkup",
        "classification_terms",
        "compare",
        "default_layers",
        "diagnose",
        "explain",
        "find_causes",
        "find_suspects",
        "load_data",
        "load_model",
        "measure_robustness",
        "penalty",
        "survey_layers",
        "treat",
    ]
    assert all(hasattr(torchdoctor, name) for name in torchdoctor.__all__)


def test_hooks_are_registered_in_one_place():
    registering = {
        module
        for module, file in MODULES.items()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and re.match(r"register_(module_)?(full_)?(forward|backward).*hook", node.attr)
    }
    assert registering == {"network.hooks"}
