"""Share the loading of batches, and run out of memory in one process; run by tests/test_processes.py.

Started once for each process of a group.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from pictures import RAW, same, table_of
from shared_program import RECIPE, SIZES, Net, batches
from torchdoctor.data import pixels as pixels_module
from torchdoctor.data.loader import Loader
from torchdoctor.diagnosis.diagnose import diagnose
from torchdoctor.processes import ALONE, launched
from torchdoctor.treatment.losses import classification_terms
from torchdoctor.treatment.recipe import Course
from torchdoctor.treatment.training import fit
from torchdoctor.types import InputError, ModelDoctorError

here = launched()
pixels_module.CACHE_BYTES = 0


def batches_alike(workers, annotated):
    """Compare the batches that processes decode together with those that one decodes; return who decoded."""
    table, decoded = table_of(21), []
    counted = replace(table, read=lambda position: decoded.append(position) or table.read(position))
    pairs = [
        Loader(table, RAW, 8, workers=0), Loader(counted, RAW, 8, workers=workers, processes=here)
    ]  # fmt: skip
    one, shared = (pair.with_annotations([1, 4, 6], 2) if annotated else pair for pair in pairs)
    for number in (0, 1):
        for mine, theirs in zip(one.epoch(number, 3), shared.epoch(number, 3), strict=True):
            assert same(mine, theirs)
    return decoded


assert len(batches_alike(0, annotated=False)) in (20, 21, 22)  # of two epochs of 21 images
batches_alike(2, annotated=True)
bare = table_of(9, masked=False)
for size in (1 + here.count, 8):  # nine images: the last batch may be smaller than the number of processes
    loaders = [Loader(bare, RAW, size, processes=each) for each in (ALONE, here)]
    for mine, theirs in zip(*(loader.epoch(0, 0) for loader in loaders), strict=True):
        assert torch.equal(mine.images, theirs.images) and theirs.masks is None


def damaged(position):
    """Fail at one image, which one process decodes."""
    if position == 7:
        raise InputError("image 7 is damaged")
    return bare.read(position)


try:
    list(Loader(replace(bare, read=damaged), RAW, 4, processes=here).epoch(0, 0))
    raise AssertionError("nobody met the damaged image")
except InputError as error:
    assert str(error) == "image 7 is damaged"
torch.manual_seed(0)
torch.set_num_threads(1)
model, images = Net().double().eval(), batches((8, 8, 8))
alone = diagnose(model, images, layers=["conv1"], draws=2, confidence=0.0)


def small(_module, inputs):
    """Refuse more than three images, as a card without room for them does."""
    if here.rank == 1 and len(inputs[0]) > 3 and torch.is_grad_enabled():
        raise torch.OutOfMemoryError("CUDA out of memory")


hook = model.register_forward_pre_hook(small)
together = diagnose(model, images, layers=["conv1"], draws=2, confidence=0.0, processes=here)
hook.remove()
unlike = np.nanmax(np.abs(together.layers[0].correlation - alone.layers[0].correlation))
assert unlike <= 1e-12, unlike


def terms(model, batch, step):
    """Run out of memory in the last process, between the exchanges of its third step."""
    found = classification_terms(model, batch)[1]
    if step == 2 and here.rank == here.count - 1:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return found


own = batches(SIZES)
try:
    fit(
        model,
        lambda _epoch: own,
        RECIPE,
        steps_per_epoch=len(own),
        seed=0,
        course=Course(terms),
        processes=here,
    )
except ModelDoctorError as error:
    print(error, flush=True)
assert here != ALONE
