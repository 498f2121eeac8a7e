"""Images held on the device: the loader's batches, moved alike, image and mask together."""

from __future__ import annotations

import pytest
import torch

from benchmarks.experiment.resident import resident
from pictures import RAW, is_red, same, table_of
from torchdoctor.data.loader import Loader
from torchdoctor.data.pixels import Preprocessing
from torchdoctor.images.batches import TrainingImages

CPU = torch.device("cpu")
PARTS = ("images", "labels", "ids", "masks", "annotated")


def both(count, masked=True, **settings):
    """Return a loader and its images on the device."""
    loader = Loader(table_of(count, masked=masked), settings.pop("preprocessing", RAW), 8, **settings)
    return loader, resident(loader, CPU)


def alike(one, other, parts=PARTS):
    for part in parts:
        mine, theirs = getattr(one, part), getattr(other, part)
        assert (mine is None) == (theirs is None)
        assert mine is None or (mine.dtype == theirs.dtype and torch.equal(mine, theirs))


@pytest.mark.parametrize("masked", [True, False])
def test_looking_gives_the_loader_s_bits(masked):
    loader, images = both(21, masked, preprocessing=Preprocessing(32, (0.5, 0.25, 0.1), (0.2, 0.5, 2.0)))
    assert isinstance(images, TrainingImages) and len(images) == 21 and images.table is loader.table
    for one, other in zip(loader, images, strict=True):
        alike(one, other)
    for one, other in zip(loader.select([9, 3]), images.select([9, 3]), strict=True):
        alike(one, other)


@pytest.mark.parametrize("count", [17, 24])
def test_an_epoch_shows_every_image_once_in_the_loader_s_batches(count):
    loader, images = both(count)
    assert images.steps_per_epoch == loader.steps_per_epoch
    for number in range(3):
        batches = list(images.epoch(number, 5))
        assert sorted(torch.cat([one.ids for one in batches]).tolist()) == list(range(count))
        for one, other in zip(loader.epoch(number, 5), batches, strict=True):
            alike(one, other, ("labels", "ids"))


def test_epochs_are_keyed():
    _, images = both(23)
    state = torch.get_rng_state()
    here = list(images.epoch(3, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert all(same(one, other) for one, other in zip(here, images.epoch(3, 1), strict=True))
    for number, seed in ((2, 1), (3, 2)):
        other = {int(i): x for b in images.epoch(number, seed) for i, x in zip(b.ids, b.images, strict=True)}
        moved = [torch.equal(other[int(i)], x) for b in here for i, x in zip(b.ids, b.images, strict=True)]
        assert sum(moved) < 4
    # What an image looks like depends on its own id alone, not on its batch.
    chosen = images.select([4, 11])
    mine = {int(i): x for b in chosen.epoch(3, 1) for i, x in zip(b.ids, b.images, strict=True)}
    assert all(torch.equal(mine[int(i)], x) for b in here for i, x in zip(b.ids, b.images, strict=True)
               if int(i) in mine)  # fmt: skip


def test_masks_follow_their_images():
    for augment in ("crop", "crop_flip", "none"):
        _, images = both(20, augment=augment)
        for batch in images.epoch(2, 9):
            assert torch.equal(is_red(batch.images), batch.masks)
            assert torch.equal(batch.annotated, batch.masks.flatten(1).any(1))


def test_annotated_images_are_drawn_into_every_batch_as_the_loader_does():
    chosen = [1, 4, 6]
    loader, images = both(20)
    loader, images = loader.with_annotations(chosen, 2), images.with_annotations(chosen, 2)
    twice = []
    for number in range(4):
        batches = list(images.epoch(number, 0))
        for one, other in zip(loader.epoch(number, 0), batches, strict=True):
            alike(one, other, ("labels", "ids"))
            assert other.annotated.dtype == torch.bool
            seen = torch.tensor([i in chosen for i in other.ids.tolist()])
            assert torch.equal(other.masks, is_red(other.images) * seen.view(-1, 1, 1, 1))
            assert torch.equal(other.annotated, seen & other.masks.flatten(1).any(1))
        views = [x for b in batches for i, x in zip(b.ids, b.images, strict=True) if int(i) == 4]
        twice.append(len({x.numpy().tobytes() for x in views}) > 1)
    assert any(twice)  # an image that is drawn again is moved otherwise


def test_crops_and_flips_are_spread_as_the_loader_s():
    plain, images = both(64)
    padded = torch.nn.functional.pad(
        next(iter(Loader(plain.table, RAW, 64))).images, (4,) * 4, mode="reflect"
    )
    windows = padded.unfold(2, 32, 1).unfold(3, 32, 1)  # [image, channel, 9, 9, 32, 32]
    down, right, flips, count = torch.zeros(9), torch.zeros(9), 0, 0
    for number in range(12):
        for batch in images.epoch(number, 0):
            for image, identity in zip(batch.images, batch.ids.tolist(), strict=True):
                hits = [
                    (windows[identity] == one[:, None, None]).all(dim=(0, 3, 4)).nonzero().tolist()
                    for one in (image, image.flip(2))
                ]
                assert len(hits[0]) + len(hits[1]) == 1  # a window of the padded image, or its mirror image
                ((line, column),) = hits[0] or hits[1]
                down[line] += 1
                right[column] += 1
                flips += bool(hits[1])
                count += 1
    assert count == 768 and abs(flips / count - 0.5) < 0.06
    for found in (down, right):  # chi-squared with 8 degrees of freedom: 26.1 at 0.1 %
        assert float(((found - count / 9) ** 2 / (count / 9)).sum()) < 26.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_holds_the_same_images():
    loader, images = both(20)
    there = resident(loader, torch.device("cuda"))
    for one, other in zip(images.epoch(1, 2), there.epoch(1, 2), strict=True):
        assert other.images.is_cuda and other.ids.is_cuda and other.masks.is_cuda
        assert all(torch.equal(getattr(one, part), getattr(other, part).cpu()) for part in PARTS)
