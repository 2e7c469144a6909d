"""Registration of the ops with PyTorch's dispatcher, which then chooses by device.

`Library.define/impl` rather than `custom_op`: half the overhead of a call, and a second definition of the same name
is an error instead of silently winning (see CONTRIBUTING, "Design notes").
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

LIBRARY = torch.library.Library("saekern", "DEF")


def define(schema: str, *, cpu: Callable, cuda: Callable | None, reference: Callable, fake: Callable) -> None:
    """Registers one op: `cpu` and `cuda` on their devices, `reference` on all others, `fake` for shapes alone."""
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    LIBRARY.impl(name, cpu, "CPU")
    if cuda is not None:
        LIBRARY.impl(name, cuda, "CUDA")
    torch.library.register_fake(f"saekern::{name}", fake, lib=LIBRARY)


def autograd(name: str, backward: Callable, setup_context: Callable) -> None:
    torch.library.register_autograd(f"saekern::{name}", backward, setup_context=setup_context, lib=LIBRARY)


def on_cpu(tensor: Tensor | None) -> np.ndarray | None:
    """A contiguous float32 tensor's NumPy view for `_C` (zero copy); None stays None."""
    return None if tensor is None else tensor.detach().to(torch.float32).contiguous().numpy()
