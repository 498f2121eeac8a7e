"""The examples in docstrings run and print what they say."""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path

import pytest

import torchdoctor

PACKAGE = Path(torchdoctor.__file__).parent
ROOMS = ("network", "evidence", "randomness", "treatment")  # add a room once its examples are written
MUST_HAVE = {"candidate_layers", "check_model", "default_layers", "survey_layers"}  # of torchdoctor.__all__


def files_of(room: str) -> list[Path]:
    """Return the files of a room: a folder, or a single module."""
    return sorted((PACKAGE / room).rglob("*.py")) or [PACKAGE / f"{room}.py"]


def examples_of(file: Path) -> dict[str, doctest.DocTest]:
    """Return the examples of a file by `module.name`.

    Docstrings are read from the source: `doctest.DocTestFinder` passes over what a decorator wraps, and the
    tests wrap every function to check array shapes.
    """
    module = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    examples = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            name = f"{module}.{getattr(node, 'name', '')}".removesuffix(".")
            line = getattr(node, "lineno", 0)
            docstring = ast.get_docstring(node) or ""
            test = doctest.DocTestParser().get_doctest(docstring, {}, name, str(file), line)
            if test.examples:
                examples[name] = test
    return examples


EXAMPLES = {
    name: test for room in ROOMS for file in files_of(room) for name, test in examples_of(file).items()
}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_prints_what_it_says(name):
    test = EXAMPLES[name]
    module = name.rpartition(".")[0]
    test.globs = dict(vars(importlib.import_module(module)))
    told: list[str] = []
    result = doctest.DocTestRunner().run(test, out=told.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(told)


def test_public_functions_of_these_rooms_have_an_example():
    assert {name.rpartition(".")[2] for name in EXAMPLES} >= MUST_HAVE
    assert set(torchdoctor.__all__) >= MUST_HAVE


def test_a_wrong_example_is_noticed():
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner().run(wrong, out=lambda _text: None).failed == 1
