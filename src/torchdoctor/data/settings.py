"""The settings of the data: which images, how many of them, how they are loaded."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from torchdoctor.settings import Count, SettingsGroup, Share, Whole, setting
from torchdoctor.types import Resize

OnError = Literal["fail", "skip"]
BoxFormat = Literal["auto", "xyxy", "xywh"]
SOURCE = ("masks", "image_column", "label_column", "box_format", "follow_links")
"""The settings that say how a source is read; every command that reads data has them."""


class DataSettings(SettingsGroup):
    """Which images, how many of them, how they are loaded."""

    data: str | None = setting(
        None,
        "The images: folder:PATH, parquet:PATH, table:FILE, NAME@ROOT for a name of `torchdoctor datasets`, "
        "torchvision:CLASS@ROOT, datasets:NAME_OR_FOLDER, webdataset:SHARDS, or scenes (drawn by code).",
        left_out="it must be given",
        newcomer=True,
    )
    masks: str | None = setting(
        None,
        "A folder of object masks: for the image train/cat/1.jpg of the data the file train/cat/1.png, white "
        "on the object (`torchdoctor masks import` makes such a folder).",
        left_out="the masks that the data themselves hold",
    )
    image_size: Annotated[int, Field(ge=8)] | Literal["auto"] = setting(
        "auto", "Side of the images in pixels.", left_out="that of the weights, else of the data"
    )
    channels: Literal[1, 3, "auto"] = setting(
        "auto", "Colour channels: 3, or 1 to make the images grey.", left_out="those of the weights, else 3"
    )
    mean: tuple[float, ...] | Literal["auto"] = setting(
        "auto",
        "Mean of each channel, for pixels in 0..1, that is subtracted: three numbers or one; `--mean 0 --std "
        "1` for weights that were trained without normalisation.",
        left_out="that of the weights, else ImageNet's",
    )
    std: tuple[float, ...] | Literal["auto"] = setting(
        "auto",
        "Standard deviation of each channel that is divided by; given together with `--mean`.",
        left_out="that of the weights, else ImageNet's",
    )
    resize: Resize | Literal["auto"] = setting(
        "auto",
        "How images become squares: crop scales with their proportions and cuts out the centre; squash "
        "scales both sides to the size.",
        left_out="that of the weights, else crop",
    )
    crop_share: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = setting(
        "auto",
        "Side of the square that crop cuts out, as a share of the scaled image's shorter side; 0.875 is "
        "`Resize(256), CenterCrop(224)`.",
        left_out="that of the weights, else 1",
    )
    batch_size: Annotated[int, Field(ge=2)] = setting(64, "Images that are processed together.")
    workers: Whole | Literal["auto"] = setting(
        "auto",
        "Processes that load images, for data too large to be kept decoded in memory; 0 loads in the main "
        "process. Their number changes no result.",
        left_out="one for each processor core, none where images are kept in memory",
    )
    limit: Count | Literal["all"] = setting("all", "Use at most this many training images of each category.")
    classes: Count | Literal["all"] = setting("all", "Use this many categories, at least 2, drawn at random.")
    classes_seed: Whole = setting(0, "The random seed that `--classes` draws categories by.")
    validation_share: Share = setting(
        0.1, "Share of the training images that becomes the validation split, where the data has none."
    )
    split_seed: Whole = setting(
        0,
        "The random seed by which data without splits is divided into training, validation and test images; "
        "`--seed` has no part in it.",
    )
    primary: str = setting(
        "auto",
        "The test split that decides the verdict; swapped makes a split in which objects with masks stand "
        "before backgrounds of other categories.",
        left_out="the data's own: test, or shifted for scenes",
    )
    image_column: str | None = setting(
        None,
        "The column of a table:, parquet: or datasets: source that holds the images.",
        left_out="path or image, else the one column with another usual name",
    )
    label_column: str | None = setting(
        None,
        "The column of a table:, parquet: or datasets: source that holds the labels; of a webdataset: source "
        "the ending or the JSON field.",
        left_out="label, else the one column with another usual name",
    )
    box_format: BoxFormat = setting(
        "auto",
        "How the column bbox of a table: or parquet: source holds boxes: xyxy (xmin, ymin, xmax, ymax in "
        "pixels), xywh (x, y, width, height, as COCO), or auto (xyxy, refused where it seems to be xywh).",
    )
    follow_links: bool = setting(
        False, "Follow symbolic links that lead out of the folder of a folder: or table: source."
    )
    download: bool = setting(False, "Let torchvision download the data where it is missing.")
    on_error: OnError = setting(
        "fail", "What to do with images that cannot be decoded: fail, or skip them and name them."
    )
