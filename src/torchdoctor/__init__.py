"""Model Doctor: diagnose, treat and re-examine convolutional image classifiers."""

from torchdoctor.causes import find_causes
from torchdoctor.checks import check_model
from torchdoctor.constraints import Constraint
from torchdoctor.courses import Course, Recipe, classification_terms
from torchdoctor.data import load_data
from torchdoctor.diagnosis import diagnose
from torchdoctor.evaluation import compare
from torchdoctor.explanation import explain
from torchdoctor.layers import candidate_layers, default_layers, survey_layers
from torchdoctor.models import load_model
from torchdoctor.robustness import measure_robustness
from torchdoctor.treatment import treat
from torchdoctor.types import Batch, Comparison, Diagnosis, InputError, ModelDoctorError, Treatment

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Comparison",
    "Constraint",
    "Course",
    "Diagnosis",
    "InputError",
    "ModelDoctorError",
    "Recipe",
    "Treatment",
    "candidate_layers",
    "check_model",
    "classification_terms",
    "compare",
    "default_layers",
    "diagnose",
    "explain",
    "find_causes",
    "load_data",
    "load_model",
    "measure_robustness",
    "survey_layers",
    "treat",
]
