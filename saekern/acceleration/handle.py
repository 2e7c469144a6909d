"""Methods of one object replaced, and put back."""

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import MethodType, TracebackType
from typing import Any, NamedTuple

from torch import nn

from saekern.acceleration.layout import Layout

OURS = __name__.rpartition(".")[0]
ABSENT = object()


class Patch(NamedTuple):
    """One method of one object to replace."""

    owner: Any
    function: Callable[..., Any]
    """Of a module of ours, marked with `replaces`. It gets the owner first, as a method does."""
    note: str
    """What changes, for a person."""

    @property
    def name(self) -> str:
        return self.function.__name__


def replaces(name: str) -> Callable[[Callable], Callable]:
    """Marks a function as one that replaces the method `name`.

    It takes over that name: a bound method is pickled as its owner and its function's name. An accelerated object that
    was pickled so comes back as the library's own, without any need of saekern where it is read.
    """

    def mark(function: Callable) -> Callable:
        function.__name__ = name
        return function

    return mark


class Handle:
    """What `accelerate` returns. Leaving it as a context, or `restore`, puts everything back.

    Attributes:
        obj: the accelerated object.
        library: whose it is.
        notes: what was changed, and what now differs from the library, one sentence each.
        active: the changes are in place.
    """

    def __init__(self, obj: Any, package: str, library: str, patches: Sequence[Patch | Layout]) -> None:
        self.obj, self.library, self.active = obj, library, False
        self.notes = tuple(dict.fromkeys(patch.note for patch in patches))
        self._patches = [patch for patch in patches if isinstance(patch, Patch)]
        for patch in self._patches:  # all of them before anything is touched
            check(patch, package, library)
        self._before: list[Any] = []
        self._strides: list[tuple[Layout, tuple[int, ...]]] = []
        try:
            for patch in self._patches:
                self._before.append(vars(patch.owner).get(patch.name, ABSENT))
                setattr(patch.owner, patch.name, bind(patch.function, patch.owner))
            for layout in patches:
                if isinstance(layout, Layout):
                    self._strides.append((layout, layout.apply()))
        except BaseException:
            self._put_back()
            raise
        self.active = True

    def restore(self) -> None:
        """Puts everything back. A second call does nothing; what somebody else replaced since stays, with a warning."""
        if self.active:
            self.active = False
            self._put_back()

    def _put_back(self) -> None:
        while self._before:
            before = self._before.pop()
            patch = self._patches[len(self._before)]
            now = vars(patch.owner).get(patch.name, ABSENT)
            if not is_ours(now):
                if now is not before:
                    kind = type(patch.owner).__name__
                    warnings.warn(f"{kind}.{patch.name} was replaced after accelerate: left as it is", stacklevel=3)
            elif before is ABSENT:
                delattr(patch.owner, patch.name)
            else:
                setattr(patch.owner, patch.name, before)
        while self._strides:
            layout, strides = self._strides.pop()
            layout.undo(strides)

    def __enter__(self) -> "Handle":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def __repr__(self) -> str:
        state = "" if self.active else ", restored"
        notes = "".join(f"\n  {note}" for note in self.notes)
        return f"<saekern.Handle: {type(self.obj).__name__} of {self.library}{state}>{notes}"


def restore(obj: Any) -> None:
    """Puts back an object that has no handle: a deep copy of an accelerated one. Works on any object, and its SAEs."""
    for owner in parts(obj):
        for name, value in list(vars(owner).items()):
            if is_ours(value):
                delattr(owner, name)


def parts(obj: Any) -> Iterator[Any]:
    """The object and what it holds that may be accelerated too: modules, also in dicts and lists."""
    yield obj
    for value in list(vars(obj).values()):
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
        yield from (module for module in inner if isinstance(module, nn.Module) and module is not obj)


def bind(function: Callable[..., Any], owner: Any) -> MethodType:
    """A method proper: deepcopy binds it to the copy of its owner, and pickle writes its name alone."""
    return MethodType(function, owner)


def is_ours(value: Any) -> bool:
    return isinstance(value, MethodType) and value.__func__.__module__.startswith(OURS + ".")


def check(patch: Patch, package: str, library: str) -> None:
    """The method must be the library's own: one that somebody else wrote does something that we do not know."""
    kind, name = type(patch.owner), patch.name
    where = f"{kind.__name__}.{name}"
    present = vars(patch.owner).get(name, ABSENT)
    if is_ours(present):
        raise ValueError(f"accelerate: this {kind.__name__} is accelerated already; restore it first")
    # A bound method of the class itself is what pickle leaves of an accelerated object.
    its_own = getattr(present, "__func__", ABSENT) is getattr(kind, name, None)
    if present is not ABSENT and not its_own:
        raise ValueError(f"accelerate: {where} was replaced on this object; only {library}'s own can be accelerated")
    author = next((base for base in kind.__mro__ if name in vars(base)), None)
    if author is None:
        raise ValueError(f"accelerate: {where} does not exist: this version of {library} is not supported")
    if author.__module__.partition(".")[0] != package:
        raise ValueError(f"accelerate: {where} is overridden by {author.__qualname__}, not {library}'s own")
    theirs, ours = (tuple(inspect.signature(it).parameters) for it in (getattr(kind, name), patch.function))
    if theirs != ours:
        raise ValueError(f"accelerate: {where} takes {theirs}, expected {ours}: this version of {library} is not known")
