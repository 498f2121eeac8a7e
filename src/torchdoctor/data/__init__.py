"""Read images from where they are stored, named by a value of `--data` such as `folder:PATH` or `scenes`."""

from torchdoctor.data.catalogue import DATASETS, DataEntry
from torchdoctor.data.load import SCHEMES, Splits, load_data, load_tables
from torchdoctor.data.loader import Loader
from torchdoctor.data.pixels import Preprocessing
from torchdoctor.data.table import ImageTable, Tables, carve, limit_per_category

__all__ = [
    "DATASETS",
    "SCHEMES",
    "DataEntry",
    "ImageTable",
    "Loader",
    "Preprocessing",
    "Splits",
    "Tables",
    "carve",
    "limit_per_category",
    "load_data",
    "load_tables",
]
