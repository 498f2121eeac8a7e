"""The wheel holds all that the package needs, its types among it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import torchdoctor

ROOT = Path(__file__).parent.parent
PACKAGE = Path(torchdoctor.__file__).parent

RIGHT = """import torchdoctor as td
layer: str = td.Diagnosis.load("run/diagnosis").layers[0].name
verdict: str = td.Comparison.load("run").verdict
"""
WRONG = RIGHT.replace("layer: str", "layer: int")
# What the package is built on is installed beside it; its own types are not what this test is about.
SETTINGS = """[mypy]
strict = True
[mypy-torch.*,torchvision.*,timm.*,scipy.*,matplotlib.*,pydantic.*]
follow_imports = skip
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel without downloading anything."""
    folder = tmp_path_factory.mktemp("wheel")
    ran(folder, sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    (file,) = folder.glob("torchdoctor-*.whl")
    return file


@pytest.fixture(scope="module")
def clean(wheel: Path) -> Path:
    """Install the wheel into a new environment that finds its dependencies here; return its Python."""
    home = wheel.parent / "environment"
    venv.EnvBuilder(with_pip=True).create(home)
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ran(home, str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    place = ran(home, str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # A path named in a .pth file is not searched for .pth files: this project's editable install stays out.
    dependencies = [sysconfig.get_path(kind) for kind in ("purelib", "platlib")]
    (Path(place) / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    return python


def ran(home: Path, *command: str, cwd: Path | None = None, code: int = 0) -> str:
    """Run a command outside of the repository and of its import path; return what it printed."""
    surroundings = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")
    }
    done = subprocess.run(command, cwd=cwd or home, env=surroundings, capture_output=True, text=True)
    assert done.returncode == code, (command, done.returncode, done.stdout, done.stderr)
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    wanted = {
        f"torchdoctor/{file.relative_to(PACKAGE).as_posix()}"
        for file in PACKAGE.rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    assert {"torchdoctor/py.typed", "torchdoctor/report/page.html.jinja"} <= wanted
    assert {f"torchdoctor/review/page/{name}" for name in ("page.html", "page.css", "main.js")} <= wanted
    with zipfile.ZipFile(wheel) as content:
        assert {name for name in content.namelist() if name.startswith("torchdoctor/")} == wanted


@pytest.mark.slow
def test_an_installed_wheel_is_type_checked(clean: Path) -> None:
    home = clean.parent.parent
    origin = ran(home, str(clean), "-c", "import torchdoctor; print(torchdoctor.__file__)").strip()
    assert Path(origin).is_relative_to(home)
    (home / "mypy.ini").write_text(SETTINGS)
    (home / "right.py").write_text(RIGHT)
    (home / "wrong.py").write_text(WRONG)
    check = (sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--python-executable", str(clean))
    assert "no issues found in 1 source file" in ran(home, *check, "right.py")
    said = ran(home, *check, "wrong.py", code=1)
    assert 'wrong.py:2: error: Incompatible types in assignment (expression has type "str"' in said
    assert "Found 1 error" in said
