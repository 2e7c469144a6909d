"""Finds in Triton's interpreter, which runs a program's threads as one, what only threads could get wrong: two accesses
to one address, one of them a store, with no `tl.debug_barrier` between them or from two programs of one launch."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest


class Race(AssertionError):
    pass


class Memory:
    """Who touched which address: since the launch, and in this program since its last barrier."""

    def __init__(self, in_place: bool) -> None:
        self.in_place = in_place  # a store after a load of the same address is the same thread's: element by element
        self.launch(())

    def launch(self, grid) -> None:
        self.readers: dict[int, object] = {}  # of several programs the first
        self.writers: dict[int, object] = {}
        self.shared: set[int] = set()  # read by more than one program
        self.begin(None)

    def begin(self, program) -> None:
        self.program = program
        self.barrier()

    def barrier(self) -> None:
        self.read: set[int] = set()
        self.written: set[int] = set()

    def load(self, addresses: list[int]) -> None:
        for address in addresses:
            if address in self.written:
                raise Race("a load of what another thread may not have stored yet: no barrier since the store")
            if self.writers.get(address, self.program) != self.program:
                raise Race("a load of what another program of the launch stores")
            if self.readers.setdefault(address, self.program) != self.program:
                self.shared.add(address)
        self.read.update(addresses)

    def store(self, addresses: list[int]) -> None:
        for address in addresses:
            if address in self.written:
                raise Race("two stores to one address: no barrier between them")
            if address in self.read and not self.in_place:
                raise Race("a store over what another thread may not have loaded yet: no barrier since the load")
            if self.writers.setdefault(address, self.program) != self.program:
                raise Race("two programs of a launch store to one address")
            if address in self.shared or self.readers.get(address, self.program) != self.program:
                raise Race("a store to what another program of the launch loads")
            self.written.add(address)


@contextmanager
def watched(*, in_place: bool = False) -> Iterator[None]:
    """Raises Race at the first race of a kernel run inside. Reductions are no barriers: with one warp none is made."""
    from triton.runtime import interpreter
    from triton.runtime.errors import InterpreterError

    memory = Memory(in_place)
    builder = interpreter.InterpreterBuilder

    def before(method, act):
        def wrapper(self, *arguments):
            act(*arguments)
            return method(self, *arguments)

        return wrapper

    def touched(pointers, mask):
        addresses, allowed = np.broadcast_arrays(pointers.data, mask.data)
        return addresses[allowed.astype(bool)].ravel().tolist()

    with pytest.MonkeyPatch.context() as patch:
        for name, act in {
            "set_grid_dim": lambda *dims: memory.launch(dims),
            "set_grid_idx": lambda *program: memory.begin(program),
            "create_barrier": memory.barrier,
            "create_masked_load": lambda pointers, mask, *_: memory.load(touched(pointers, mask)),
            "create_masked_store": lambda pointers, _, mask, *__: memory.store(touched(pointers, mask)),
        }.items():
            patch.setattr(builder, name, before(getattr(builder, name), act))
        try:
            yield
        except InterpreterError as error:  # which tells the cause in words alone
            if "Race(" in str(error):
                raise Race(str(error)) from error
            raise
