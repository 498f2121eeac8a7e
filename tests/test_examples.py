"""The examples in docstrings run and print what they say."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import torchdoctor

PACKAGE = Path(torchdoctor.__file__).parent
FUNCTIONS = sorted(name for name in torchdoctor.__all__ if inspect.isfunction(getattr(torchdoctor, name)))


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


EXAMPLES = {name: test for file in sorted(PACKAGE.rglob("*.py")) for name, test in examples_of(file).items()}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_prints_what_it_says(name):
    test = EXAMPLES[name]
    module = name.rpartition(".")[0]
    test.globs = dict(vars(importlib.import_module(module)))
    told: list[str] = []
    result = doctest.DocTestRunner().run(test, out=told.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(told)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_has_an_example_that_calls_it(name):
    function = getattr(torchdoctor, name)
    example = EXAMPLES.get(f"{function.__module__}.{name}")
    assert example is not None, f"{function.__module__}.{name} has no example in its docstring"
    assert f"{name}(" in "".join(part.source for part in example.examples)


def test_the_package_offers_functions():
    assert {"diagnose", "treat", "load_data", "load_model", "survey_layers"} <= set(FUNCTIONS)


def test_a_wrong_example_is_noticed():
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner().run(wrong, out=lambda _text: None).failed == 1
