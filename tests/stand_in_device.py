"""A second device on a machine without one: tensors that compute on the CPU and say that they live on "meta".

Mixing them with CPU tensors fails as on a GPU, and every operation for which the host would have to wait is counted.
"""

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::unique_dim"}
MIXES = {"aten::copy_", "aten::_to_copy", "aten::index"}  # a GPU takes CPU tensors here: copies, and index tensors


class OnDevice(Tensor):
    """Wraps `inner`, which lies in the host's memory."""

    @staticmethod
    def __new__(cls, inner):
        return Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="meta",
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self, **_):
        return f"OnDevice({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return StandIn.active.run(func, args, kwargs or {})


class StandIn(TorchDispatchMode):
    """While it is active, "meta" is a device like any other. `waits` lists what the host waited for."""

    active: "StandIn"

    def __init__(self):
        super().__init__()
        self.waits = []

    def __enter__(self):
        StandIn.active = self
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def run(self, func, args, kwargs):
        name, device = func._schema.name, kwargs.get("device")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        ours = [t for t in tensors if isinstance(t, OnDevice)]
        strangers = [t for t in tensors if not isinstance(t, OnDevice) and t.dim()]
        if ours and strangers and name not in MIXES:
            raise RuntimeError(f"{name}: expected all tensors on one device, {[list(t.shape) for t in tensors]}")
        there = bool(ours) if device is None else torch.device(device).type == "meta"
        if name == "aten::copy_":
            there = isinstance(args[0], OnDevice)
        to_host = name in ("aten::copy_", "aten::_to_copy") and ours and not there
        masked = name == "aten::index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if ours and (to_host or masked or name in WAITS):
            self.waits.append(name)
        if device is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        inner_args, inner_kwargs = tree_map(_inner, (args, kwargs))
        out = func(*inner_args, **inner_kwargs)
        known = {id(_inner(tensor)): tensor for tensor in tensors}

        def outer(leaf):
            if not isinstance(leaf, Tensor) or id(leaf) in known:
                return known.get(id(leaf), leaf)
            return OnDevice(leaf) if there else leaf

        return tree_map(outer, out)


def _inner(leaf):
    return leaf.inner if isinstance(leaf, OnDevice) else leaf


def patch_autocast(monkeypatch):
    """torch knows no autocast for "meta"."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
