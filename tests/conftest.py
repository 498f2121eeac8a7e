"""Settings of all tests; array shapes are checked throughout (see pytest's options in pyproject.toml)."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from shared_folders import leave_blank, unchanged

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; tests that need it skip where it is not."""
    folder = os.environ.get("TORCHDOCTOR_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("TORCHDOCTOR_DATA names no folder")
    return Path(folder)


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Return a function that runs the command line in an empty folder: (exit code, stdout, stderr)."""
    from torchdoctor.cli import app as cli

    monkeypatch.chdir(tmp_path)
    # On a busy machine even a refusal can take longer; test_terminal.py is about these lines.
    monkeypatch.setattr("torchdoctor.cli.terminal.SECONDS_BETWEEN_LINES", float("inf"))

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["torchdoctor", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return run


@pytest.fixture
def blank_figures(monkeypatch):
    """Draw no figures, which takes longer than all else on small networks; for tests of other things."""
    leave_blank(monkeypatch)


@pytest.fixture(scope="module")
def blank_figures_throughout():
    """Draw no figures in any test of a module."""
    with pytest.MonkeyPatch.context() as patch:
        leave_blank(patch)
        yield


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """An ImageFolder of two colours, 24 px: train/ and test/. All tests share it, and none changes it."""
    from PIL import Image

    root = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    for split, number in (("train", 24), ("test", 8)):
        for name, colour in (("blue", 2), ("red", 0)):
            (root / split / name).mkdir(parents=True)
            for position in range(number):
                pixels = torch.randint(0, 120, (24, 24, 3), generator=generator, dtype=torch.uint8)
                pixels[6:18, 6:18, colour] += 120
                Image.fromarray(pixels.numpy()).save(root / split / name / f"{position}.png")
    with unchanged(root):
        yield root


@pytest.fixture(scope="session")
def trained(photos, tmp_path_factory):
    """A finished train run on the photographs. All tests share it, and none changes it."""
    out = tmp_path_factory.mktemp("runs") / "base"
    from torchdoctor.case.settings import Settings
    from torchdoctor.verbs.train import run_train

    settings = Settings(model="small_resnet", data=f"folder:{photos}", out=str(out), epochs=6, batch_size=16)
    assert run_train(settings).exit_code == 0
    with unchanged(out):
        yield out


@pytest.fixture(scope="session")
def reviewed(tmp_path_factory):
    """A finished run to review, beside its photographs and its base; tests work in copies of its folder."""
    from review_runs import make_run

    with pytest.MonkeyPatch.context() as patch:
        leave_blank(patch)
        run = make_run(tmp_path_factory.mktemp("reviewed"))
    with unchanged(run), unchanged(run.parent / "base"), unchanged(run.parent / "photographs"):
        yield run


@pytest.fixture(scope="session", autouse=True)
def interrupts_arrive():
    """Let Ctrl-C mean what it means at a terminal, however the tests were started (nohup ignores it)."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
