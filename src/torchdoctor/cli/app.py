"""The command line: a verb parses, calls one function of the engine, and prints what came out."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from torchdoctor import __version__
from torchdoctor.cli import data as cli_data
from torchdoctor.cli import diagnosis as cli_diagnosis
from torchdoctor.cli import models as cli_models
from torchdoctor.cli.options import (
    Arms,
    Augment,
    Auto,
    BatchSize,
    Budget,
    BudgetKind,
    Channels,
    Classes,
    ClassesSeed,
    Confidence,
    Config,
    Constraints,
    Data,
    Delta,
    Device,
    DiagnosisRun,
    Download,
    Draws,
    DryRun,
    Epochs,
    Evidence,
    Expand,
    ImageSize,
    ImagesPerCategory,
    Layers,
    Lazy,
    LearningRate,
    Limit,
    Masks,
    MaxLoss,
    MinGain,
    Model,
    Norm,
    OnError,
    Optimizer,
    Out,
    Precision,
    Primary,
    Resume,
    Scale,
    Seed,
    Seeds,
    Select,
    Targets,
    Tau,
    Tensorboard,
    Text,
    Theta,
    ValidationShare,
    Weight,
    WeightDecay,
    Weights,
    Workers,
)
from torchdoctor.cli.terminal import AsJson, ProgressBar, show
from torchdoctor.types import InputError, Interrupted, ModelDoctorError

app = typer.Typer(
    name="torchdoctor",
    help="Diagnose which kernels and which background pixels make an image classifier err, treat it beside "
    "a control arm, and prove whether that helped.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _settings(given: dict[str, Any]) -> Any:
    """Merge defaults, file and command line."""
    from torchdoctor.case.settings import settings_from

    rest = {name: value for name, value in given.items() if name not in ("config", "json_", "dry_run")}
    return settings_from(rest, given.get("config"))


def _run(verb: str, given: dict[str, Any], **more: Any) -> None:
    """Run one verb on its parsed options, or only plan it."""
    from torchdoctor import verbs as engine
    from torchdoctor.cli import tables as summary

    settings = _settings(given)
    if given["dry_run"]:
        show(engine.plan(settings, verb), given["json_"], summary.print_plan)  # type: ignore[arg-type]
        return
    run = getattr(engine, f"run_{verb}")
    with ProgressBar(given["json_"]) as progress:
        outcome = run(settings, progress, **more)
    _finish(outcome, given["json_"])


def _run_on(verb: str, given: dict[str, Any]) -> None:
    """Run a verb that can go on with an unfinished run, and says on stderr what it found there."""
    resume = given.pop("resume")
    _run(verb, given, resume=resume, say=lambda text: print(f"torchdoctor: {text}", file=sys.stderr))


def _finish(outcome: Any, as_json: bool) -> None:
    """Print the outcome and end with its exit code."""
    from torchdoctor.cli import tables as summary

    show(outcome if not as_json else outcome.record, as_json, summary.print_outcome)
    raise typer.Exit(outcome.exit_code)


@app.command()
def train(
    model: Model = None, data: Data = None, out: Out = None, config: Config = None, weights: Weights = None,
    epochs: Epochs = None, limit: Limit = None, batch_size: BatchSize = None, workers: Workers = None,
    device: Device = None, seed: Seed = None, seeds: Seeds = None, primary: Primary = None,
    image_size: ImageSize = None, optimizer: Optimizer = None, learning_rate: LearningRate = None,
    weight_decay: WeightDecay = None, norm: Norm = None, augment: Augment = None, channels: Channels = None,
    classes: Classes = None, classes_seed: ClassesSeed = None, validation_share: ValidationShare = None,
    download: Download = None,
    on_error: OnError = None, precision: Precision = None, tensorboard: Tensorboard = None,
    resume: Resume = False,
    json_: AsJson = False,
    dry_run: DryRun = False,
) -> None:  # fmt: skip
    """Train a classifier, so that there is something to treat."""
    _run_on("train", dict(locals()))


@app.command()
def diagnose(
    model: Model = None, weights: Weights = None, data: Data = None, out: Out = None, config: Config = None,
    layers: Layers = None, evidence: Evidence = None, scale: Scale = None, draws: Draws = None,
    delta: Delta = None, theta: Theta = None, images_per_category: ImagesPerCategory = None,
    confidence: Confidence = None, limit: Limit = None, batch_size: BatchSize = None,
    workers: Workers = None, device: Device = None, seed: Seed = None, seeds: Seeds = None,
    epochs: Epochs = None, primary: Primary = None, image_size: ImageSize = None, channels: Channels = None,
    classes: Classes = None, classes_seed: ClassesSeed = None, validation_share: ValidationShare = None,
    download: Download = None,
    on_error: OnError = None,
    resume: Resume = False,
    json_: AsJson = False,
    dry_run: DryRun = False,
) -> None:  # fmt: skip
    """Find which kernels each category depends on, where its evidence lies, and why images are mistaken."""
    _run_on("diagnose", dict(locals()))


@app.command()
def treat(
    model: Model = None, weights: Weights = None, data: Data = None, out: Out = None, config: Config = None,
    diagnosis: DiagnosisRun = None, constraints: Constraints = None, weight: Weight = None, tau: Tau = None,
    targets: Targets = None, masks_per_category: Masks = None, expand_pixels: Expand = None,
    max_loss: MaxLoss = None, layers: Layers = None, evidence: Evidence = None, scale: Scale = None,
    draws: Draws = None, lazy: Lazy = None, delta: Delta = None, theta: Theta = None,
    images_per_category: ImagesPerCategory = None, confidence: Confidence = None, seeds: Seeds = None,
    epochs: Epochs = None, limit: Limit = None, batch_size: BatchSize = None, workers: Workers = None,
    device: Device = None, seed: Seed = None, primary: Primary = None, image_size: ImageSize = None,
    optimizer: Optimizer = None, learning_rate: LearningRate = None, weight_decay: WeightDecay = None,
    norm: Norm = None, augment: Augment = None, channels: Channels = None,
    classes: Classes = None, classes_seed: ClassesSeed = None, validation_share: ValidationShare = None,
    download: Download = None,
    on_error: OnError = None, arms: Arms = None, budget_kind: BudgetKind = None,
    precision: Precision = None, min_gain: MinGain = None, tensorboard: Tensorboard = None,
    resume: Resume = False,
    json_: AsJson = False, dry_run: DryRun = False,
) -> None:  # fmt: skip
    """Train further under constraints, beside a control arm without them."""
    _run_on("treat", dict(locals()))


@app.command()
def checkup(
    model: Model = None, weights: Weights = None, data: Data = None, out: Out = None, config: Config = None,
    diagnosis: DiagnosisRun = None, constraints: Constraints = None, weight: Weight = None, tau: Tau = None,
    targets: Targets = None, masks_per_category: Masks = None, expand_pixels: Expand = None,
    max_loss: MaxLoss = None, layers: Layers = None, evidence: Evidence = None, scale: Scale = None,
    draws: Draws = None, lazy: Lazy = None, delta: Delta = None, theta: Theta = None,
    images_per_category: ImagesPerCategory = None, confidence: Confidence = None, seeds: Seeds = None,
    epochs: Epochs = None, limit: Limit = None, batch_size: BatchSize = None, workers: Workers = None,
    device: Device = None, seed: Seed = None, primary: Primary = None, image_size: ImageSize = None,
    optimizer: Optimizer = None, learning_rate: LearningRate = None, weight_decay: WeightDecay = None,
    norm: Norm = None, augment: Augment = None, channels: Channels = None,
    classes: Classes = None, classes_seed: ClassesSeed = None, validation_share: ValidationShare = None,
    download: Download = None,
    on_error: OnError = None, arms: Arms = None, budget_kind: BudgetKind = None,
    precision: Precision = None, min_gain: MinGain = None, auto: Auto = None, budget: Budget = None,
    select: Select = None, tensorboard: Tensorboard = None, resume: Resume = False,
    json_: AsJson = False, dry_run: DryRun = False,
) -> None:  # fmt: skip
    """Diagnose, treat, compare and report in one go."""
    _run_on("checkup", dict(locals()))


@app.command()
def demo(
    out: Out = None, config: Config = None, data: Data = None, model: Model = None, seeds: Seeds = None,
    epochs: Epochs = None, limit: Limit = None, batch_size: BatchSize = None, workers: Workers = None,
    device: Device = None, seed: Seed = None, primary: Primary = None, max_loss: MaxLoss = None,
    json_: AsJson = False, dry_run: DryRun = False,
) -> None:  # fmt: skip
    """Train a small network on `scenes`, where backgrounds give categories away, and check it up."""
    _run("demo", dict(locals()))


@app.command()
def compare(
    run: Annotated[str, typer.Argument(help="A finished treat run.")],
    primary: Primary = None, max_loss: MaxLoss = None, device: Device = None, workers: Workers = None,
    batch_size: BatchSize = None, json_: AsJson = False,
) -> None:  # fmt: skip
    """Compare base, control and treated on the test splits, once."""
    from torchdoctor.verbs.compare import run_compare

    given = {"primary": primary, "max_loss": max_loss, "device": device, "workers": workers}
    with ProgressBar(json_) as progress:
        outcome = run_compare(run, {**given, "batch_size": batch_size}, progress)
    _finish(outcome, json_)


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="A finished run.")],
    out: Annotated[Text, typer.Option("--out", help="The page's file. [RUN/report.html]")] = None,
    device: Device = None, workers: Workers = None, json_: AsJson = False,
) -> None:  # fmt: skip
    """Write the HTML report of a finished run."""
    from torchdoctor.verbs.report import run_report

    with ProgressBar(json_) as progress:
        outcome = run_report(run, {"device": device, "workers": workers}, out, progress)
    _finish(outcome, json_)


@app.command()
def predict(
    images: Annotated[list[str], typer.Argument(help="Images, or folders of them.")],
    weights: Weights = None, model: Model = None, config: Config = None, device: Device = None,
    batch_size: BatchSize = None, image_size: ImageSize = None, json_: AsJson = False,
) -> None:  # fmt: skip
    """Run weights on images."""
    from torchdoctor import verbs as engine
    from torchdoctor.cli import tables as summary

    given = dict(locals())
    settings = _settings({name: given[name] for name in ("weights", "model", "config", "device",
                                                         "batch_size", "image_size")})  # fmt: skip
    found = engine.predict(settings, images)
    show(found, json_, summary.print_predictions)


app.command()(cli_diagnosis.explain)
app.command()(cli_diagnosis.robustness)
app.command()(cli_models.models)
app.command()(cli_models.layers)
app.command()(cli_data.datasets)
app.add_typer(cli_data.data)


def _version(wanted: bool | None) -> None:
    if wanted:
        typer.echo(f"torchdoctor {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool | None, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = None,
) -> None:
    del version


def main() -> None:
    """Run the command line; a known failure is one clear line on stderr and its exit code."""
    try:
        app()
    except InputError as error:
        print(f"torchdoctor: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Interrupted as error:
        print(f"torchdoctor: {error}: go on with --resume", file=sys.stderr)
        sys.exit(error.exit_code)
    except ModelDoctorError as error:
        print(f"torchdoctor: the run failed: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("torchdoctor: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
