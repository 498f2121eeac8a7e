"""Every public function, method and class says what goes in and what comes out."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

import torchdoctor

PACKAGE = Path(torchdoctor.__file__).parent
MOST_PARAMETERS = 12
FILES = sorted(PACKAGE.rglob("*.py"))
SECTION = re.compile(r"^(Args|Returns|Yields|Raises|Attributes|Example|Examples|Note|Type parameters):\s*$")
ENTRY = re.compile(r"^ {4}(\*{0,2}\w+)(?: \([^)]*\))?:")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def sections_of(docstring: str) -> dict[str, list[str]]:
    """Return the names of the entries under each heading of a Google-style docstring."""
    sections: dict[str, list[str]] = {}
    entries: list[str] = []
    for line in docstring.splitlines():
        heading = SECTION.match(line)
        if heading:
            entries = sections.setdefault(heading.group(1), [])
        elif line and not line.startswith(" "):
            entries = []  # text that belongs to no heading
        elif entry := ENTRY.match(line):
            entries.append(entry.group(1))
    return sections


def decorators_of(node: Function | ast.ClassDef) -> set[str]:
    """Return the last names of a definition's decorators."""
    calls = [item.func if isinstance(item, ast.Call) else item for item in node.decorator_list]
    return {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}


def parameters_of(node: Function, *, method: bool) -> list[str]:
    """Return the names of a function's parameters, without `self` and `cls`; `*` and `**` are written."""
    positional = [*node.args.posonlyargs, *node.args.args]
    if method and "staticmethod" not in decorators_of(node):
        positional = positional[1:]
    names = [argument.arg for argument in (*positional, *node.args.kwonlyargs)]
    names += [f"*{node.args.vararg.arg}"] if node.args.vararg else []
    return names + ([f"**{node.args.kwarg.arg}"] if node.args.kwarg else [])


def returns_something(node: Function) -> bool:
    """Say whether a caller gets a value; a property is itself the value that its docstring names."""
    if decorators_of(node) & {"property", "cached_property", "setter"} or node.returns is None:
        return False
    return ast.unparse(node.returns) not in ("None", "Never", "NoReturn")


def wrong_in_function(node: Function, *, method: bool, of_class: str = "") -> Iterator[str]:
    """Yield what is missing or too much in the docstring of a function or method."""
    docstring = ast.get_docstring(node) or ""
    sections = sections_of(docstring)
    parameters = parameters_of(node, method=method)
    entries = sections.get("Args", [])
    if node.name == "__init__":  # the class may document its constructor
        entries = entries or sections_of(of_class).get("Args", [])
    elif not docstring:
        yield "no docstring"
        return
    # A variadic parameter may be written with or without its stars; a leading underscore means unused.
    written = {entry.lstrip("*") for entry in entries}
    for name in parameters:
        if name.lstrip("*") not in written and not name.lstrip("*").startswith("_"):
            yield f"parameter {name} has no entry under Args:"
    for entry in sorted(written - {name.lstrip("*") for name in parameters}):
        yield f"Args: names {entry}, which is no parameter"
    if returns_something(node) and not {"Returns", "Yields"} & set(sections):
        yield "returns something but has no Returns: or Yields:"


def fields_of(node: ast.ClassDef) -> list[str]:
    """Return the public annotated fields of a class, but not its class variables."""
    return [
        item.target.id
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and not item.target.id.startswith("_")
        and "ClassVar" not in ast.unparse(item.annotation)
    ]


def wrong_in_class(node: ast.ClassDef, *, described: bool) -> Iterator[str]:
    """Yield what is missing in the docstring of a class; the fields of `described` classes need no entry."""
    docstring = ast.get_docstring(node) or ""
    if not docstring:
        yield "no docstring"
    if described:
        return
    entries = sections_of(docstring).get("Attributes", [])
    for name in fields_of(node):
        if name not in entries:
            yield f"field {name} has no entry under Attributes:"


def wrong_in(source: str, described: frozenset[str] = frozenset()) -> list[str]:
    """Return what is wrong with the public definitions of a module, each with its line.

    A setting holds its own sentence, so the classes named in `described` (pydantic models) list no fields.
    """
    wrong = []

    def note(node: Function | ast.ClassDef, name: str, problems: Iterator[str]) -> None:
        wrong.extend(f"line {node.lineno}: {name}: {problem}" for problem in problems)

    for node in ast.parse(source).body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            note(node, node.name, wrong_in_function(node, method=False))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            note(node, node.name, wrong_in_class(node, described=node.name in described))
            for item in node.body:
                if not isinstance(item, Function) or (item.name.startswith("_") and item.name != "__init__"):
                    continue
                of_class = ast.get_docstring(node) or ""
                problems = wrong_in_function(item, method=True, of_class=of_class)
                note(item, f"{node.name}.{item.name}", problems)
    return wrong


def pydantic_models(file: Path) -> frozenset[str]:
    """Return the names of a file's pydantic models."""
    name = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    members = vars(importlib.import_module(name))
    return frozenset(
        key for key, value in members.items() if isinstance(value, type) and issubclass(value, BaseModel)
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_docstrings_name_every_parameter_result_and_field(file):
    wrong = wrong_in(file.read_text(encoding="utf-8"), pydantic_models(file))
    assert not wrong, "\n".join([str(file.relative_to(PACKAGE.parent)), *wrong])


def test_no_function_takes_more_parameters_than_a_reader_can_hold():
    crowded = [
        f"{file.relative_to(PACKAGE)}:{node.lineno}: {node.name} takes {len(names)}"
        for file in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, Function)
        and len(names := set(parameters_of(node, method=False)) - {"self", "cls"}) > MOST_PARAMETERS
    ]
    assert not crowded, "\n".join(crowded)


COMPLETE = '''
class Field:
    """A field.

    Attributes:
        size: Its size.
    """

    size: int

    def grown(self, by: int, *more: int) -> "Field":
        """Return a larger field.

        Args:
            by: How much is added.
            *more: What else is added.

        Returns:
            The field.
        """
'''


def test_a_complete_docstring_passes():
    assert wrong_in(COMPLETE) == []


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("            by: How much is added.\n", "", "parameter by has no entry"),
        ("            *more: What else is added.\n", "", "parameter *more has no entry"),
        (
            "            by: How",
            "            of: What.\n            by: How",
            "names of, which is no parameter",
        ),
        ("        Returns:\n            The field.\n", "", "no Returns: or Yields:"),
        ("        size: Its size.\n", "", "field size has no entry under Attributes:"),
        ("    size: int\n", "    size: int\n\n    def bare(self): ...\n", "Field.bare: no docstring"),
    ],
)
def test_an_incomplete_docstring_is_noticed(before, after, problem):
    assert before in COMPLETE
    wrong = wrong_in(COMPLETE.replace(before, after))
    assert len(wrong) == 1 and problem in wrong[0]


def test_settings_need_no_list_of_fields():
    source = (
        'class Settings(SettingsGroup):\n    """Some settings."""\n    size: int = setting(1, "The size.")\n'
    )
    assert wrong_in(source, frozenset({"Settings"})) == []
    assert len(wrong_in(source)) == 1
