"""Where rows come from: language models, shards on disk, tensors in memory, synthetic models."""

from saekern.activations.cache import ActivationCache, open_cache
from saekern.activations.harvest import harvest
from saekern.activations.hugging_face import HookedModule, load_hugging_face
from saekern.activations.images import Patch, harvest_images, image_files, load_vision_model, patch_of
from saekern.activations.language_model import load_model, tiny_model, tiny_record, weights_hash
from saekern.activations.python_source import python_source_sequences
from saekern.activations.rows import ChosenRows, Rows, ShardRows, TensorRows, open_shards
from saekern.activations.synthetic import Collages, LowRankRows, SyntheticRows, collages, low_rank_rows, synthetic_rows

__all__ = [
    "ActivationCache",
    "ChosenRows",
    "Collages",
    "HookedModule",
    "LowRankRows",
    "Patch",
    "Rows",
    "ShardRows",
    "SyntheticRows",
    "TensorRows",
    "collages",
    "harvest",
    "harvest_images",
    "image_files",
    "load_hugging_face",
    "load_model",
    "load_vision_model",
    "low_rank_rows",
    "open_cache",
    "open_shards",
    "patch_of",
    "python_source_sequences",
    "synthetic_rows",
    "tiny_model",
    "tiny_record",
    "weights_hash",
]
