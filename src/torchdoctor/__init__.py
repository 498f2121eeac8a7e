"""Model Doctor: diagnose, treat and re-examine convolutional image classifiers."""

import gc
from contextlib import ExitStack

__version__ = "0.1.0"

with ExitStack() as _paused:
    # The imports make about a million objects, and all of them stay. Looking for garbage among them
    # meanwhile takes a quarter of the processor time of the imports.
    if gc.isenabled():
        gc.disable()
        _paused.callback(gc.enable)

    from torchdoctor.data.load import load_data
    from torchdoctor.data.settings import DataSettings
    from torchdoctor.diagnosis.causes import find_causes
    from torchdoctor.diagnosis.causes_result import Causes
    from torchdoctor.diagnosis.diagnose import diagnose
    from torchdoctor.diagnosis.explanation import explain
    from torchdoctor.diagnosis.explanation_result import Explanation
    from torchdoctor.diagnosis.result import Diagnosis
    from torchdoctor.diagnosis.robustness import RobustnessSettings, measure_robustness
    from torchdoctor.diagnosis.second_opinion import SecondOpinion
    from torchdoctor.diagnosis.settings import DiagnosisSettings
    from torchdoctor.diagnosis.suspects import find_suspects
    from torchdoctor.diagnosis.suspects_result import Suspects
    from torchdoctor.images.batches import Batch
    from torchdoctor.models.loading import load_model
    from torchdoctor.network.candidates import candidate_layers
    from torchdoctor.network.checks import check_model
    from torchdoctor.network.default_layers import default_layers
    from torchdoctor.network.layers import survey_layers
    from torchdoctor.proof.compare import compare
    from torchdoctor.proof.result import Comparison
    from torchdoctor.treatment.constraints import Constraint
    from torchdoctor.treatment.losses import classification_terms
    from torchdoctor.treatment.own_loop import TrainingPenalty, penalty
    from torchdoctor.treatment.recipe import Course, Recipe
    from torchdoctor.treatment.result import Treatment
    from torchdoctor.treatment.settings import TreatmentSettings
    from torchdoctor.treatment.treat import treat
    from torchdoctor.types import InputError, ModelDoctorError
    from torchdoctor.verbs.in_memory import Checkup, checkup

__all__ = [
    "Batch",
    "Causes",
    "Checkup",
    "Comparison",
    "Constraint",
    "Course",
    "DataSettings",
    "Diagnosis",
    "DiagnosisSettings",
    "Explanation",
    "InputError",
    "ModelDoctorError",
    "Recipe",
    "RobustnessSettings",
    "SecondOpinion",
    "Suspects",
    "TrainingPenalty",
    "Treatment",
    "TreatmentSettings",
    "candidate_layers",
    "check_model",
    "checkup",
    "classification_terms",
    "compare",
    "default_layers",
    "diagnose",
    "explain",
    "find_causes",
    "find_suspects",
    "load_data",
    "load_model",
    "measure_robustness",
    "penalty",
    "survey_layers",
    "treat",
]
