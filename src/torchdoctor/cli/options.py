"""The options that several verbs of the command line share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Text = str | None
Whole = int | None
Number = float | None
Many = list[str] | None


def flag(name: str, text: str) -> Any:
    return typer.Option(name, help=text, show_default=False)


Model = Annotated[
    Text,
    flag(
        "--model",
        "A name of `models`, torchvision:NAME, timm:NAME, hf-hub:OWNER/NAME, local-dir:PATH, "
        "package.module:factory.",
    ),
]
Weights = Annotated[
    Text, flag("--weights", "Trained weights: .safetensors, a state dict of torch.save, or pretrained.")
]
Data = Annotated[
    Text, flag("--data", "NAME@ROOT, torchvision:CLASS@ROOT, folder:PATH, parquet:PATH, table:FILE, scenes.")
]
Out = Annotated[Text, flag("--out", "The run's folder; must not exist yet. [runs/<verb>-<time>]")]
Config = Annotated[Text, flag("--config", "A YAML file of settings; the command line goes before it.")]
Seeds = Annotated[Whole, flag("--seeds", "How many times treatment and control are repeated. [3]")]
Seed = Annotated[Whole, flag("--seed", "The number all randomness starts from. [0]")]
Epochs = Annotated[Whole, flag("--epochs", "Passes over the training images. [train: 20; treat: 10]")]
Limit = Annotated[Whole, flag("--limit", "Training images per category at most.")]
BatchSize = Annotated[Whole, flag("--batch-size", "Images per step. [64]")]
Workers = Annotated[Whole, flag("--workers", "Loading processes for data too large for memory. [0]")]
Device = Annotated[Text, flag("--device", "auto, cpu or cuda. [auto]")]
Primary = Annotated[
    Text,
    flag("--primary", "The test split that decides; swapped: other backgrounds, by masks. [scenes: shifted]"),
]
ImageSize = Annotated[
    Whole, flag("--image-size", "Side of the images in pixels. [the weights', or the data's]")
]
Channels = Annotated[Whole, flag("--channels", "3, or 1: images made grey. [the weights', or 3]")]
Classes = Annotated[Whole, flag("--classes", "Draw that many categories at random.")]
ClassesSeed = Annotated[Whole, flag("--classes-seed", "What the drawn categories depend on. [0]")]
ValidationShare = Annotated[
    Number,
    flag("--validation-share", "What validation takes of the training images, where it has none. [0.1]"),
]
Download = Annotated[bool | None, flag("--download", "Let torchvision fetch the data.")]
OnError = Annotated[Text, flag("--on-error", "Images that do not decode: fail or skip. [fail]")]
Optimizer = Annotated[Text, flag("--optimizer", "sgd or adamw. [sgd]")]
LearningRate = Annotated[Number, flag("--learning-rate", "Highest learning rate. [train: 0.1; treat: 0.01]")]
WeightDecay = Annotated[Number, flag("--weight-decay", "Weight decay of matrices. [0.0005]")]
Norm = Annotated[Text, flag("--norm", "Batch-norm statistics: frozen or train. [train]")]
Augment = Annotated[Text, flag("--augment", "none, crop or crop_flip. [crop_flip]")]
Layers = Annotated[
    Many,
    flag("--layers", "Names, patterns, all, last:N to diagnose; a constraint acts at the last unless it "
         "names its own. [last convolution and two earlier]"),
]  # fmt: skip
Evidence = Annotated[
    Text,
    flag("--evidence", "gradient (diagnose) or gradient_x_activation (treat, checkup)."),
]
Scale = Annotated[
    Text, flag("--scale", "none (the paper's) or share of the evidence, of constraints you name. [share]")
]
Draws = Annotated[
    Text, flag("--draws", "Noise draws J; 0: none; exact: their limit. [diagnosis: 10; treatment steps: 1]")
]
Lazy = Annotated[Whole, flag("--lazy", "Compute the constraints at every k-th step, k times as strong. [1]")]
Delta = Annotated[Number, flag("--delta", "Noise range, in units of the map. [0.1 x the layer's deviation]")]
Theta = Annotated[Number, flag("--theta", "Relative height from which a kernel is correlated. [0.2]")]
ImagesPerCategory = Annotated[Whole, flag("--images-per-category", "Sifted images per category, T. [100]")]
Confidence = Annotated[Number, flag("--confidence", "Confidence from which an image is sifted. [0.9]")]
DiagnosisRun = Annotated[Text, flag("--diagnosis", "A run whose diagnosis is used. [made first]")]
Constraints = Annotated[
    Many,
    flag("--constraints", "channel, space, channel_paper, ..., each alone or with options of its own: "
         "'space layers=conv3 weight=2 schedule=ramp'. ['channel scale=none', and space where masks exist]"),
]  # fmt: skip
Arms = Annotated[
    Many,
    flag("--arms", "control, treated, swap, dfr, smoothing, averaging, rrr; verdicts speak of the one after "
         "the control. [control,treated; where masks exist control,swap,treated]"),
]  # fmt: skip
BudgetKind = Annotated[Text, flag("--budget-kind", "What all arms share: steps or time. [steps]")]
Precision = Annotated[Text, flag("--precision", "Of the forward pass: fp32, bf16 or fp16. [fp32]")]
MinGain = Annotated[Number, flag("--min-gain", "Points that the treatment must gain, else exit code 3. [0]")]
Auto = Annotated[bool | None, flag("--auto", "Let the validation split choose remedy, layers and weight.")]
Budget = Annotated[Text, flag("--budget", "Of --auto: minutes, or steps such as 2000steps. [no limit]")]
Select = Annotated[
    Text, flag("--select", "What --auto scores: iid, swapped (backgrounds) or mean. [mean where masks exist]")
]
Tensorboard = Annotated[
    bool | None, flag("--tensorboard", "Also write the history as TensorBoard event files.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run in --out.")]
Weight = Annotated[Many, flag("--weight", "auto, a number, or constraint=number. [auto]")]
Tau = Annotated[Number, flag("--tau", "auto: the penalty's gradient norm, relative to the loss's. [0.3]")]
Targets = Annotated[
    Text, flag("--targets", "n and s of Eq. 5: prediction (the paper's) or label. [prediction]")
]
Masks = Annotated[
    Whole, flag("--masks-per-category", "Masks used per category; the paper takes 20. [all there are]")
]
Expand = Annotated[Whole, flag("--expand-pixels", "Growth of the object, in input pixels. [30 at 224 px]")]
MaxLoss = Annotated[Number, flag("--max-loss", "Points that no other split may lose. [5]")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would run and how long; write nothing.")]
