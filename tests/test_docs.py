"""README, CONTRIBUTING and docs: links lead somewhere, flags exist, code blocks run, prose is wrapped."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from unittest import SkipTest
from urllib.parse import unquote

import pytest
import torch
import typer
from markdown_it import MarkdownIt
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

from torchdoctor.cli.app import app
from torchdoctor.glossary import GLOSSARY

ROOT = Path(__file__).resolve().parents[1]
GENERATED = {
    ROOT / "docs" / "ledger.md",
    ROOT / "docs" / "reference" / "python-api.md",
    ROOT / "docs" / "reference" / "settings.md",
}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
WRITTEN = [page for page in PAGES if page not in GENERATED]
WIDTH = 120
MARKDOWN = MarkdownIt("commonmark").enable("table")
DONE = (0, 3, 4)  # of the command line: helped, harmed, no evidence; all of them are results
SHELL = ("bash", "console", "sh")
SHELL_SYNTAX = re.compile(r"[|<>$&;*`]|^\w+=", re.MULTILINE)


def named(page: Path) -> str:
    """Return a page's path in the repository, as the tests' ids."""
    return page.relative_to(ROOT).as_posix()


def load_writer():
    """Import docs/write_pages.py, which is a program and no module of a package."""
    spec = importlib.util.spec_from_file_location("write_pages", ROOT / "docs" / "write_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tokens_of(page: Path):
    """Yield all tokens of a page, inline ones too."""
    for token in MARKDOWN.parse(page.read_text(encoding="utf-8")):
        yield token
        yield from token.children or ()


def shell_lines(page: Path) -> list[str]:
    """Return the command lines of a page's shell blocks; continued lines are joined."""
    lines = []
    for token in tokens_of(page):
        if token.type == "fence" and token.info.split()[:1] and token.info.split()[0] in SHELL:
            lines += token.content.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines]


def inline_code(page: Path) -> list[str]:
    """Return the code spans of a page."""
    return [token.content for token in tokens_of(page) if token.type == "code_inline"]


def slug(heading: str) -> str:
    """Return the anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    tokens = MARKDOWN.parse(page.read_text(encoding="utf-8"))
    return {
        slug("".join(child.content for child in after.children))
        for token, after in pairwise(tokens)
        if token.type == "heading_open"
    }


# What holds without running anything


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_files_and_headings(page):
    for token in tokens_of(page):
        target = token.attrGet("href") if token.type == "link_open" else None
        target = token.attrGet("src") if token.type == "image" else target
        if not target or re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{named(page)}: {target} leads nowhere"
        assert not anchor or anchor in anchors(file), f"{named(page)}: {target}: no such heading"


@pytest.mark.parametrize("page", WRITTEN, ids=named)
def test_files_that_are_named_exist(page):
    for text in inline_code(page):
        if re.fullmatch(r"(src|tests|docs|benchmarks|\.ci)/[\w./-]+", text):
            assert (ROOT / text).exists(), f"{named(page)}: {text} does not exist"


def commands() -> dict[str, object]:
    """Return the commands of the command line by name, those of `data` as `data NAME`."""
    group = typer.main.get_command(app)
    found = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= {f"{name} {inner}": one for inner, one in command.commands.items()}
        else:
            found[name] = command
    return found


def parse(line: str) -> None:
    """Parse a command line as the program does, without running it; a wrong flag or verb raises."""
    words = shlex.split(line, comments=True)
    words = words[words.index("torchdoctor") + 1 :]
    stop = next(
        (place for place, word in enumerate(words) if word in ("|", ">", ">>", "&&", "||", "2>", ";")), None
    )
    words = words[:stop]
    if words == ["--help"] or words == ["--version"]:
        return
    known = commands()
    verb = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
    assert verb in known, f"no such verb: {line}"
    rest = words[len(verb.split()) :]
    if rest == ["--help"]:
        return
    known[verb].make_context(verb, list(rest))


def flags() -> set[str]:
    """Return every flag of every verb."""
    known = {"--help", "--version"}
    for command in commands().values():
        for parameter in command.params:
            known.update(parameter.opts, parameter.secondary_opts)
    return known


@pytest.mark.parametrize("page", WRITTEN, ids=named)
def test_command_lines_are_understood(page):
    lines = [line for line in shell_lines(page) if re.match(r"(\w+=\S* )*torchdoctor ", line)]
    spans = [text for text in inline_code(page) if re.match(r"torchdoctor [a-z]", text)]
    for line in (*lines, *spans):
        if re.search(r"\b[A-Z]{3,}\b(?!=)", line) and line in spans:
            continue  # `torchdoctor VERB --help` and the like
        try:
            parse(line)
        except Exception as error:
            if line in spans and type(error).__name__ == "MissingParameter":
                continue  # a sentence names a verb without all it needs
            raise AssertionError(f"{named(page)}: {line}: {getattr(error, 'message', error)}") from error


@pytest.mark.parametrize("page", WRITTEN, ids=named)
def test_flags_that_are_named_exist(page):
    if page.name == "CONTRIBUTING.md" or page.name == "when-it-helps.md":
        pytest.skip("names flags of other programs")
    known = flags()
    for text in inline_code(page):
        if re.match(r"--[a-z]", text):
            flag = re.split(r"[ =]", text)[0]
            assert flag in known, f"{named(page)}: {flag} is no flag"


def test_a_wrong_flag_is_found():
    parse("torchdoctor checkup --data folder:photos --weights w --seeds 2")
    with pytest.raises(Exception, match="no-such-flag"):
        parse("torchdoctor checkup --no-such-flag 2")
    with pytest.raises(AssertionError, match="no such verb"):
        parse("torchdoctor heal --data folder:photos")


@pytest.mark.parametrize("page", WRITTEN, ids=named)
def test_make_targets_and_programs_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for line in shell_lines(page):
        words = line.split()
        if words[:1] == ["make"]:
            assert words[1] in targets, f"{named(page)}: {line}"
        if words[:1] == ["python"] and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file() or f"cat > {words[1]} " in page.read_text(), (
                f"{named(page)}: {line}"
            )


@pytest.mark.parametrize("page", WRITTEN, ids=named)
def test_prose_is_wrapped(page):
    text = page.read_text(encoding="utf-8")
    text = re.sub(
        r"(?ms)^<!-- generated by.*?<!-- end of the generated part -->",
        lambda part: "\n" * part[0].count("\n"),
        text,
    )
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        unbreakable = line.lstrip().startswith("|") or re.search(r"https?://\S{60,}", line)
        if not fenced and not unbreakable:
            assert len(line) <= WIDTH, f"{named(page)}, line {number}: {len(line)} characters"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 600


def test_every_skip_says_why():
    for page in WRITTEN:
        if page.name == "CONTRIBUTING.md":
            continue  # explains the comment itself
        for skip in re.findall(r"<!--+ *skip:.*?-->", page.read_text(encoding="utf-8")):
            assert re.fullmatch(r"<!-- skip: next \"[^\"]{10,}\" -->", skip), f"{named(page)}: {skip}"


def test_what_is_written_from_the_code_is_up_to_date():
    for file, text in load_writer().pages().items():
        assert file.read_text(encoding="utf-8") == text, f"{named(file)}: run python docs/write_pages.py"


def test_the_glossary_is_plain_sentences():
    for term, sentence in GLOSSARY.items():
        assert sentence[0].isupper() and sentence.endswith("."), term
        assert ". " not in sentence.replace("Eq. ", ""), f"{term}: one sentence"
        assert "`" not in sentence and "<" not in sentence, f"{term}: no markup"


# What is run


@dataclass(frozen=True)
class Place:
    """A folder with what the pages speak of: photos, resnet18.safetensors, and the run runs/photos."""

    folder: Path

    def copied_to(self, target: Path, *, plain: bool) -> None:
        """Put the same into another folder as links; `plain` leaves out the run and the masks."""
        for file in self.folder.rglob("*"):
            inside = file.relative_to(self.folder)
            if plain and (inside.parts[0] == "runs" or inside.name.endswith(".mask.png")):
                continue
            if file.is_dir():
                (target / inside).mkdir(parents=True, exist_ok=True)
            else:
                (target / inside).parent.mkdir(parents=True, exist_ok=True)
                os.link(file, target / inside)


def draw_photos(root: Path) -> None:
    """Draw an ImageFolder of two categories, 36 px, with a mask beside every image."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(36, 36, dtype=torch.uint8)
    mask[6:30, 6:30] = 255
    for split, number in (("train", 24), ("test", 8)):
        for name, colour in (("blue", 2), ("red", 0)):
            (root / split / name).mkdir(parents=True)
            for position in range(number):
                pixels = torch.randint(0, 120, (36, 36, 3), generator=generator, dtype=torch.uint8)
                pixels[6:30, 6:30, colour] += 40
                Image.fromarray(pixels.numpy()).save(root / split / name / f"{position}.png")
                Image.fromarray(mask.numpy()).save(root / split / name / f"{position}.mask.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    """Make the photos, train a ResNet-18 on them, and check it up."""
    folder = tmp_path_factory.mktemp("docs")
    draw_photos(folder / "photos")
    (folder / "photo.png").write_bytes((folder / "photos" / "test" / "red" / "0.png").read_bytes())
    before = Path.cwd()
    os.chdir(folder)
    try:
        network = ["--model", "torchvision:resnet18", "--data", "folder:photos"]
        train = [
            "train",
            *network,
            "--epochs",
            "8",
            "--batch-size",
            "16",
            "--learning-rate",
            "0.02",
            "--out",
            "base",
        ]
        assert run_in_process(train) == 0
        (folder / "base" / "model.safetensors").rename(folder / "resnet18.safetensors")
        checkup = ["checkup", *network, "--weights", "resnet18.safetensors", "--out", "runs/photos"]
        assert run_in_process([*checkup, "--epochs", "1", "--seeds", "1"]) in DONE
    finally:
        os.chdir(before)
    return Place(folder)


def run_in_process(words: list[str]) -> int:
    """Run the command line in this process; return its exit code."""
    from torchdoctor.cli import main

    before, sys.argv = sys.argv, ["torchdoctor", *words]
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv = before
    return 0


SHIM = f"""#!/bin/sh
"{sys.executable}" -m torchdoctor "$@"
code=$?
echo "$code torchdoctor $*" >> "$DOCS_CODES"
exit $code
"""


def run_shell(example: Example) -> None:
    """Run a shell block in the current folder; every torchdoctor command must end with a result."""
    source = str(example.parsed)
    lines = [line for line in source.replace("\\\n", " ").splitlines() if line.strip() and line[0] != "#"]
    if not SHELL_SYNTAX.search(source) and all(line.startswith("torchdoctor ") for line in lines):
        for line in lines:
            code = run_in_process(shlex.split(line, comments=True)[1:])
            assert code in DONE, f"{line}: exit code {code}"
        return
    tools, codes = Path.cwd() / ".tools", Path.cwd() / ".tools" / "codes"
    tools.mkdir(exist_ok=True)
    codes.write_text("")
    for name, text in (("torchdoctor", SHIM), ("python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    surroundings = {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": path,
        "DOCS_CODES": str(codes),
    }
    source = source.replace("PYTHONPATH=. ", f"PYTHONPATH=.:{path} ")
    ended = subprocess.run(
        ["bash", "-c", source], env=surroundings, capture_output=True, text=True, timeout=900, check=False
    )
    said = f"{source}\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}"
    ran = codes.read_text().splitlines()
    assert all(int(line.split()[0]) in DONE for line in ran), f"{ran}\n{said}"
    assert ran or "torchdoctor " not in source, said
    assert ended.returncode in DONE, said


SYBIL = Sybil(
    parsers=[
        *(CodeBlockParser(language, run_shell) for language in SHELL),
        PythonCodeBlockParser(),
        SkipParser(),
    ],
    patterns=["*.md"],
)
RUN = [
    page
    for page in WRITTEN
    if re.search(r"^```(bash|console|sh|python)$", page.read_text(encoding="utf-8"), re.MULTILINE)
]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=named)
def test_code_blocks_run(page, place, tmp_path, monkeypatch):
    """Run a page's blocks from top to bottom in one folder and one namespace; skipped ones say why."""
    place.copied_to(tmp_path, plain=page == ROOT / "README.md")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for example in SYBIL.parse(page).examples():
        try:
            example.evaluate()
        except SkipTest:
            continue
