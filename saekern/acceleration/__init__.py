"""Other libraries' SAEs and trainers on our kernels, in place: same class, same files, same numbers, less time."""

from importlib import import_module
from typing import Any

from saekern.acceleration.handle import Handle, Patch, restore

__all__ = ["Handle", "Patch", "accelerate", "restore"]

# Import name of a library -> what we call it; each has a file of its import name here with `patches(obj)`.
LIBRARIES = {
    "dictionary_learning": "dictionary_learning",
    "overcomplete": "overcomplete",
    "sae_lens": "SAELens",
    "sparsify": "sparsify",
}


def accelerate(obj: Any) -> Handle:
    """Makes an SAE or a trainer of another library run its own training and inference on our kernels.

    Example:
        >>> handle = saekern.accelerate(trainer)  # doctest: +SKIP
        >>> trainer.fit()
        >>> handle.restore()  # or: with saekern.accelerate(trainer): ...

    A few methods of this one object are replaced; its class, parameters, `state_dict`, optimizer and files stay as they
    are. Outputs and gradients are the library's up to rounding, except where `handle.notes` says otherwise. Dense codes
    and pre-activations [B, F] are made when somebody reads them: docs/accelerate.md has the table.

    Supported: TopK, BatchTopK, JumpReLU and ReLU SAEs, and the trainers that hold them.

    Raises:
        ValueError: the object, or something it is configured to do, is not supported; it says what, and the object is
            untouched.
    """
    for kind in type(obj).__mro__:
        library = kind.__module__.partition(".")[0]
        if library in LIBRARIES:
            found = import_module(f"saekern.acceleration.{library}").patches(obj)
            return Handle(obj, library, LIBRARIES[library], found)
    known = ", ".join(LIBRARIES.values())
    raise ValueError(f"accelerate: expected an SAE or a trainer of {known}, got {type(obj).__qualname__}")
