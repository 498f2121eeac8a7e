"""Decide whether a treatment helped: gains over the control arm, with intervals, p-values and verdicts."""

from torchdoctor.proof.statistics import compare_split, paired_gain
from torchdoctor.proof.verdict import verdict_of

__all__ = ["compare_split", "paired_gain", "verdict_of"]
