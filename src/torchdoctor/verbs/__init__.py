"""Run verbs on settings and keep what they made in run folders."""

from torchdoctor.case.config import settings_from
from torchdoctor.case.outcome import Outcome
from torchdoctor.case.settings import Settings
from torchdoctor.verbs.checkup import run_checkup
from torchdoctor.verbs.compare import run_compare
from torchdoctor.verbs.demo import run_demo
from torchdoctor.verbs.diagnose import run_diagnose
from torchdoctor.verbs.explain import run_explain
from torchdoctor.verbs.forecast import plan
from torchdoctor.verbs.layers import survey
from torchdoctor.verbs.masks import check_masks, export_masks, import_masks
from torchdoctor.verbs.predict import predict
from torchdoctor.verbs.report import run_report
from torchdoctor.verbs.review import run_propose, run_review
from torchdoctor.verbs.robustness import run_robustness
from torchdoctor.verbs.train import run_train
from torchdoctor.verbs.treat import run_treat

__all__ = [
    "Outcome",
    "Settings",
    "check_masks",
    "export_masks",
    "import_masks",
    "plan",
    "predict",
    "run_checkup",
    "run_compare",
    "run_demo",
    "run_diagnose",
    "run_explain",
    "run_propose",
    "run_report",
    "run_review",
    "run_robustness",
    "run_train",
    "run_treat",
    "settings_from",
    "survey",
]
