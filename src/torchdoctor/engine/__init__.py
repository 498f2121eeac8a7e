"""Run verbs on settings and keep what they made in run folders."""

from torchdoctor.engine.explaining import run_explain
from torchdoctor.engine.listing import survey
from torchdoctor.engine.planning import plan
from torchdoctor.engine.prediction import predict
from torchdoctor.engine.settings import Settings, settings_from
from torchdoctor.engine.stages import Outcome
from torchdoctor.engine.verbs import (
    run_checkup,
    run_compare,
    run_demo,
    run_diagnose,
    run_report,
    run_robustness,
    run_train,
    run_treat,
)

__all__ = [
    "Outcome",
    "Settings",
    "plan",
    "predict",
    "run_checkup",
    "run_compare",
    "run_demo",
    "run_diagnose",
    "run_explain",
    "run_report",
    "run_robustness",
    "run_train",
    "run_treat",
    "settings_from",
    "survey",
]
