"""Run the demo: train a small network on made-up images, and check it up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torchdoctor.case.identity import start_run
from torchdoctor.case.outcome import Outcome
from torchdoctor.case.preparation import prepare
from torchdoctor.case.settings import MEASURED, Settings
from torchdoctor.runs.folder import RunFolder
from torchdoctor.runs.history import check_trackers
from torchdoctor.runs.interruption import interruptible
from torchdoctor.types import Progress, silent
from torchdoctor.verbs.begin import Watch, with_facts
from torchdoctor.verbs.checkup import checkup_stages
from torchdoctor.verbs.train import train_stage


def run_demo(settings: Settings, progress: Progress = silent) -> Outcome:
    """Train a small network on `scenes`, where the background gives the category away, and check it up.

    Args:
        settings: What was asked for; the rest is chosen by `demo_settings`.
        progress: Called with stage, done, of how many.

    Returns:
        The outcome of the checkup; its record also holds that of the first training, under `base`.

    Raises:
        InputError: A setting does not fit, or the folder cannot be used.
    """
    check_trackers(settings.tensorboard, settings.tracker)
    base, further = demo_settings(settings)
    case = prepare(base, "train", needs_weights=False)
    folder = prepare(further, "demo", needs_weights=False).folder  # refuses now what it would refuse later
    with RunFolder.create(folder) as run, interruptible() as stop:
        trained = train_stage(case, run.path / "base", progress, stop)
        again = prepare(further.but(weights=str(trained.record["weights"]), out=str(folder)), "demo")
        start_run(run.path, "checkup", again)
        outcome = checkup_stages(again, run.path, None, Watch(progress, stop))
        return with_facts(replace(outcome, record={**outcome.record, "base": trained.record}), again)


BASE_EPOCHS = 14


# So that the demo ends within minutes; everything else is what any checkup does.
FURTHER: dict[str, Any] = {"epochs": 6}


def demo_settings(settings: Settings) -> tuple[Settings, Settings]:
    """Return the settings of the demo's base training and of its checkup.

    The shorter training (`FURTHER`) fills what was left at its default, and only for the demo's own network
    and data.

    Args:
        settings: What was asked for.

    Returns:
        The settings of the base training, and those of the checkup.
    """
    data, model = settings.data or "scenes", settings.model or "small_resnet"
    common = settings.but(data=data, model=model, weights=None)
    base = common.but(epochs=BASE_EPOCHS)
    if base.learning_rate == MEASURED:
        base = base.but(learning_rate="auto")
    if common.model != "small_resnet" or str(common.data).partition(":")[0] != "scenes":
        return base, common
    default = Settings()
    missing = {
        name: value for name, value in FURTHER.items() if getattr(common, name) == getattr(default, name)
    }
    return base, common.but(**missing)
