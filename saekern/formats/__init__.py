"""Other libraries' checkpoints, in and out: one file a format, and the door to them."""

from saekern.formats.checkpoint import Checkpoint, build
from saekern.formats.dictionary import read_dictionary
from saekern.formats.registry import detect, examine, formats, load, save

__all__ = ["Checkpoint", "build", "detect", "examine", "formats", "load", "read_dictionary", "save"]
