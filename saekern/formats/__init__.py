"""Other libraries' checkpoints, in and out: one file a format, and the door to them."""

from saekern.formats.checkpoint import Checkpoint, build
from saekern.formats.dictionary import read_dictionary, read_encoder
from saekern.formats.registry import choose, detect, examine, formats, load, save
from saekern.formats.sae_lens_module import register_sae_lens, to_sae_lens

__all__ = [
    "Checkpoint",
    "build",
    "choose",
    "detect",
    "examine",
    "formats",
    "load",
    "read_dictionary",
    "read_encoder",
    "register_sae_lens",
    "save",
    "to_sae_lens",
]
