"""The command line: a verb parses, calls one function of the engine, and prints what came out."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from torchdoctor import __version__, cli_data, cli_models
from torchdoctor.terminal import AsJson, ProgressBar, show
from torchdoctor.types import InputError, ModelDoctorError

app = typer.Typer(
    name="torchdoctor",
    help="Diagnose which kernels and which background pixels make an image classifier err, treat it beside "
    "a control arm, and prove whether that helped.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Text = str | None
Whole = int | None
Number = float | None
Many = list[str] | None


def _flag(name: str, text: str) -> Any:
    return typer.Option(name, help=text, show_default=False)


Model = Annotated[
    Text, _flag("--model", "A name of `models`, torchvision:NAME, timm:NAME, package.module:factory.")
]
Weights = Annotated[
    Text, _flag("--weights", "Trained weights: .safetensors, a state dict of torch.save, or pretrained.")
]
Data = Annotated[
    Text, _flag("--data", "NAME@ROOT, torchvision:CLASS@ROOT, folder:PATH, parquet:PATH, table:FILE, scenes.")
]
Out = Annotated[Text, _flag("--out", "The run's folder; must not exist yet. [runs/<verb>-<time>]")]
Config = Annotated[Text, _flag("--config", "A YAML file of settings; the command line goes before it.")]
Seeds = Annotated[Whole, _flag("--seeds", "How many times treatment and control are repeated. [3]")]
Seed = Annotated[Whole, _flag("--seed", "The number all randomness starts from. [0]")]
Epochs = Annotated[Whole, _flag("--epochs", "Passes over the training images. [train: 20; treat: 5]")]
Limit = Annotated[Whole, _flag("--limit", "Training images per category at most.")]
BatchSize = Annotated[Whole, _flag("--batch-size", "Images per step. [64]")]
Workers = Annotated[Whole, _flag("--workers", "Loading processes for data too large for memory. [0]")]
Device = Annotated[Text, _flag("--device", "auto, cpu or cuda. [auto]")]
Primary = Annotated[Text, _flag("--primary", "The test split that decides. [scenes: shifted]")]
ImageSize = Annotated[
    Whole, _flag("--image-size", "Side of the images in pixels. [the weights', or the data's]")
]
Channels = Annotated[Whole, _flag("--channels", "3, or 1: images made grey. [the weights', or 3]")]
Classes = Annotated[Whole, _flag("--classes", "Draw that many categories at random.")]
ClassesSeed = Annotated[Whole, _flag("--classes-seed", "What the drawn categories depend on. [0]")]
Download = Annotated[bool | None, _flag("--download", "Let torchvision fetch the data.")]
OnError = Annotated[Text, _flag("--on-error", "Images that do not decode: fail or skip. [fail]")]
Optimizer = Annotated[Text, _flag("--optimizer", "sgd or adamw. [sgd]")]
LearningRate = Annotated[Number, _flag("--learning-rate", "Highest learning rate. [train: 0.1; treat: 0.01]")]
WeightDecay = Annotated[Number, _flag("--weight-decay", "Weight decay of matrices. [0.0005]")]
Norm = Annotated[Text, _flag("--norm", "Batch-norm statistics: frozen or train. [train]")]
Augment = Annotated[Text, _flag("--augment", "none, crop or crop_flip. [crop_flip]")]
Layers = Annotated[Many, _flag("--layers", "Layers, by dotted name. [last convolution and two earlier]")]
Evidence = Annotated[
    Text,
    _flag("--evidence", "gradient (diagnose) or gradient_x_activation (treat, checkup)."),
]
Scale = Annotated[Text, _flag("--scale", "none (the paper's) or share of the evidence. [share]")]
Draws = Annotated[Whole, _flag("--draws", "Noise draws J; 0: none. [diagnosis: 10; treatment steps: 1]")]
Delta = Annotated[Number, _flag("--delta", "Noise range, in units of the map. [0.1 x the layer's deviation]")]
Theta = Annotated[Number, _flag("--theta", "Relative height from which a kernel is correlated. [0.2]")]
ImagesPerCategory = Annotated[Whole, _flag("--images-per-category", "Sifted images per category, T. [100]")]
Confidence = Annotated[Number, _flag("--confidence", "Confidence from which an image is sifted. [0.9]")]
DiagnosisRun = Annotated[Text, _flag("--diagnosis", "A run whose diagnosis is used. [made first]")]
Constraints = Annotated[
    Many, _flag("--constraints", "channel, space. [channel, and space where masks exist]")
]
Weight = Annotated[Many, _flag("--weight", "auto, a number, or constraint=number. [auto]")]
Tau = Annotated[Number, _flag("--tau", "auto: the penalty's gradient norm, relative to the loss's. [0.3]")]
Targets = Annotated[
    Text, _flag("--targets", "n and s of Eq. 5: prediction (the paper's) or label. [prediction]")
]
Masks = Annotated[Whole, _flag("--masks-per-category", "Masks used per category. [20]")]
Expand = Annotated[Whole, _flag("--expand-pixels", "Growth of the object, in input pixels. [30 at 224 px]")]
MaxLoss = Annotated[Number, _flag("--max-loss", "Points that no other split may lose. [5]")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would run and how long; write nothing.")]


def _settings(given: dict[str, Any]) -> Any:
    """Merge defaults, file and command line."""
    from torchdoctor.engine import settings_from

    rest = {name: value for name, value in given.items() if name not in ("config", "json_", "dry_run")}
    return settings_from(rest, given.get("config"))


def _run(verb: str, given: dict[str, Any]) -> None:
    """Run one verb on its parsed options, or only plan it."""
    from torchdoctor import engine, summary

    settings = _settings(given)
    if given["dry_run"]:
        show(engine.plan(settings, verb), given["json_"], summary.print_plan)  # type: ignore[arg-type]
        return
    run = getattr(engine, f"run_{verb}")
    with ProgressBar(given["json_"]) as progress:
        outcome = run(settings, progress)
    _finish(outcome, given["json_"])


def _finish(outcome: Any, as_json: bool) -> None:
    """Print the outcome and end with its exit code."""
    from torchdoctor import summary

    show(outcome if not as_json else outcome.record, as_json, summary.print_outcome)
    raise typer.Exit(outcome.exit_code)


@app.command()
def train(
    model: Model = None, data: Data = None, out: Out = None, config: Config = None, weights: Weights = None,
    epochs: Epochs = None, limit: Limit = None, batch_size: BatchSize = None, workers: Workers = None,
    device: Device = None, seed: Seed = None, seeds: Seeds = None, primary: Primary = None,
    image_size: ImageSize = None, optimizer: Optimizer = None, learning_rate: LearningRate = None,
    weight_decay: WeightDecay = None, norm: Norm = None, augment: Augment = None, channels: Channels = None,
    classes: Classes = None, classes_seed: ClassesSeed = None, download: Download = None,
    on_error: OnError = None,
    json_: AsJson = False,
    dry_run: DryRun = False,
) -> None:  # fmt: skip
    """Train a classifier, so that there is something to treat."""
    _run("train", dict(locals()))


@app.command()
def diagnose(
    model: Model = None, weights: Weights = None, data: Data = None, out: Out = None, config: Config = None,
    layers: Layers = None, evidence: Evidence = None, scale: Scale = None, draws: Draws = None,
    delta: Delta = None, theta: Theta = None, images_per_category: ImagesPerCategory = None,
    confidence: Confidence = None, limit: Limit = None, batch_size: BatchSize = None,
    workers: Workers = None, device: Device = None, seed: Seed = None, seeds: Seeds = None,
    epochs: Epochs = None, primary: Primary = None, image_size: ImageSize = None, channels: Channels = None,
    classes: Classes = None, classes_seed: ClassesSeed = None, download: Download = None,
    on_error: OnError = None,
    json_: AsJson = False,
    dry_run: DryRun = False,
) -> None:  # fmt: skip
    """Find which kernels each category depends on, and how much evidence lies on the background."""
    _run("diagnose", dict(locals()))


@app.command()
def treat(
    model: Model = None, weights: Weights = None, data: Data = None, out: Out = None, config: Config = None,
    diagnosis: DiagnosisRun = None, constraints: Constraints = None, weight: Weight = None, tau: Tau = None,
    targets: Targets = None, masks_per_category: Masks = None, expand_pixels: Expand = None,
    max_loss: MaxLoss = None, layers: Layers = None, evidence: Evidence = None, scale: Scale = None,
    draws: Draws = None, delta: Delta = None, theta: Theta = None,
    images_per_category: ImagesPerCategory = None, confidence: Confidence = None, seeds: Seeds = None,
    epochs: Epochs = None, limit: Limit = None, batch_size: BatchSize = None, workers: Workers = None,
    device: Device = None, seed: Seed = None, primary: Primary = None, image_size: ImageSize = None,
    optimizer: Optimizer = None, learning_rate: LearningRate = None, weight_decay: WeightDecay = None,
    norm: Norm = None, augment: Augment = None, channels: Channels = None,
    classes: Classes = None, classes_seed: ClassesSeed = None, download: Download = None,
    on_error: OnError = None,
    json_: AsJson = False, dry_run: DryRun = False,
) -> None:  # fmt: skip
    """Train further under constraints, beside a control arm without them."""
    _run("treat", dict(locals()))


@app.command()
def checkup(
    model: Model = None, weights: Weights = None, data: Data = None, out: Out = None, config: Config = None,
    diagnosis: DiagnosisRun = None, constraints: Constraints = None, weight: Weight = None, tau: Tau = None,
    targets: Targets = None, masks_per_category: Masks = None, expand_pixels: Expand = None,
    max_loss: MaxLoss = None, layers: Layers = None, evidence: Evidence = None, scale: Scale = None,
    draws: Draws = None, delta: Delta = None, theta: Theta = None,
    images_per_category: ImagesPerCategory = None, confidence: Confidence = None, seeds: Seeds = None,
    epochs: Epochs = None, limit: Limit = None, batch_size: BatchSize = None, workers: Workers = None,
    device: Device = None, seed: Seed = None, primary: Primary = None, image_size: ImageSize = None,
    optimizer: Optimizer = None, learning_rate: LearningRate = None, weight_decay: WeightDecay = None,
    norm: Norm = None, augment: Augment = None, channels: Channels = None,
    classes: Classes = None, classes_seed: ClassesSeed = None, download: Download = None,
    on_error: OnError = None,
    json_: AsJson = False, dry_run: DryRun = False,
) -> None:  # fmt: skip
    """Diagnose, treat, compare and report in one go."""
    _run("checkup", dict(locals()))


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
    from torchdoctor.engine import run_compare

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
    from torchdoctor.engine import run_report

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
    from torchdoctor import engine, summary

    given = dict(locals())
    settings = _settings({name: given[name] for name in ("weights", "model", "config", "device",
                                                         "batch_size", "image_size")})  # fmt: skip
    found = engine.predict(settings, images)
    show(found, json_, summary.print_predictions)


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
    except ModelDoctorError as error:
        print(f"torchdoctor: the run failed: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("torchdoctor: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
