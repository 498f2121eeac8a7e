"""What a diagnosis says about the first discovery: few kernels per category, the same for all its images."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.experiment.recording import number
from torchdoctor import Diagnosis
from torchdoctor.diagnosis.result import QUANTILES
from torchdoctor.diagnosis.sparsity import sparsity
from torchdoctor.diagnosis.statistics import cosine


def sparseness(diagnosis: Diagnosis, layer: str) -> dict[str, Any]:
    """Return the numbers of one layer, averaged over the diagnosed categories; None where there is none.

    `correlated` kernels and their share of all; `evidence_share`: the least share of the kernels that carries
    90 % of the evidence; `agreement`: how alike a single image's evidence is to its category's (median of
    the cosine). Because no evidence is negative, any two rows are somewhat alike: `between` is how alike
    the categories are to one another, which is what `agreement` has to be compared with.
    """
    found, diagnosed = diagnosis.layer(layer), diagnosis.counts > 0
    rows, marked = found.correlation[diagnosed], found.correlated[diagnosed]
    median = found.agreement[QUANTILES.index(0.5)][diagnosed]
    pairs = np.triu_indices(len(rows), 1)
    return {
        "kernels": int(found.correlation.shape[1]),
        "correlated": number(_mean(marked.sum(1)), 2),
        "correlated_share": number(_mean(marked.mean(1))),
        "evidence_share": number(_mean(sparsity(rows))) if len(rows) else None,
        "agreement": number(_mean(median)),
        "between": number(_mean(cosine(rows[pairs[0]], rows[pairs[1]]))),
        "sifted": int(diagnosis.counts.sum()),
        "diagnosed": int(diagnosed.sum()),
    }


def _mean(values: np.ndarray) -> float:
    """Return the mean of the numbers that are known; NaN if there is none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
