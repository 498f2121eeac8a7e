"""Decide whether a treatment helped: gains over the control, with intervals, p-values and verdicts."""

from torchdoctor.proof.statistics import compare_split, paired_gain, verdict_of

__all__ = ["compare_split", "paired_gain", "verdict_of"]
