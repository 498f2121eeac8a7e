"""Run out of memory in one of several processes; run by tests/test_processes.py, once for each process."""

from __future__ import annotations

import numpy as np
import torch

from shared_program import RECIPE, SIZES, Net, batches
from torchdoctor.diagnosis.diagnose import diagnose
from torchdoctor.processes import ALONE, launched
from torchdoctor.treatment.losses import classification_terms
from torchdoctor.treatment.recipe import Course
from torchdoctor.treatment.training import fit
from torchdoctor.types import ModelDoctorError

here = launched()
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
