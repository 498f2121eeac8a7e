"""What all commands share: JSON or tables on stdout, and a progress bar on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def show(found: Any, as_json: bool, pretty: Callable[[Console, Any], None]) -> None:
    """Print JSON on stdout, or tables for a person."""
    if as_json:
        from torchdoctor.files.writing import plain

        sys.stdout.write(json.dumps(plain(found), ensure_ascii=False, allow_nan=False) + "\n")
    else:
        console = Console()
        pretty(console if console.is_terminal else Console(width=120), found)


class ProgressBar:
    """A progress bar on stderr, one line per stage; silent when stderr is no terminal."""

    def __init__(self, quiet: bool) -> None:
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Callable[[str, int, int], None]:
        """Start the bar and return the function that moves it."""
        self.bar.start()
        return self.move

    def __exit__(self, *_error: object) -> None:
        """Stop the bar."""
        self.bar.stop()

    def move(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage is."""
        if stage not in self.tasks:
            self.tasks[stage] = self.bar.add_task(stage, total=total)
        self.bar.update(self.tasks[stage], completed=done, total=total)
