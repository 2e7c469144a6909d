"""Dictionaries made when they are asked for, so that many of them need the memory of two."""

from collections.abc import Callable, Sequence
from typing import Any, overload


class Lazy(Sequence):
    """A sequence whose item i is `make(i)`, made anew at each access."""

    def __init__(self, length: int, make: Callable[[int], Any]):
        self._length, self._make = length, make

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> "Lazy": ...
    def __getitem__(self, index: int | slice) -> Any:
        chosen = range(self._length)[index]
        if isinstance(chosen, range):
            return Lazy(len(chosen), lambda i: self._make(chosen[i]))
        return self._make(chosen)
