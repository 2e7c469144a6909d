"""What accelerate does to an object and how it is put back, on a small stand-in for a library."""

import copy
import pickle
import sys
import types

import pytest
import torch
from torch import nn

import saekern
from saekern.acceleration import handle as handles
from saekern.acceleration import restore
from saekern.acceleration.handle import Handle, Patch, replaces


class Toy(nn.Module):
    """A library's SAE."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def encode(self, x):
        return x * self.weight

    def decode(self, z):
        return z - 1


Toy.__module__ = "toy_library.sae"


class Loud(Toy):
    """A user's subclass of it."""

    def encode(self, x):
        return super().encode(x) * 100


class Named(Toy):
    """A user's subclass that changes nothing that matters."""


@replaces("encode")
def new_encode(self, x):
    return x * self.weight + 10


@replaces("decode")
def new_decode(self, z):
    return z - 2


@replaces("decode")
def other_decode(self, codes):
    return codes


@replaces("missing")
def missing(self):
    return None


OURS = "saekern.acceleration.toy_library"
for function in (new_encode, new_decode, other_decode, missing):
    function.__module__ = OURS

X = torch.ones(2)


@pytest.fixture(autouse=True)
def toy_library(monkeypatch):
    """Both modules, for pickle and `accelerate`."""
    theirs, ours = types.ModuleType("toy_library"), types.ModuleType(OURS)
    sae = types.ModuleType("toy_library.sae")
    sae.Toy = Toy
    ours.patches = lambda obj: [Patch(obj, new_encode, "both are new"), Patch(obj, new_decode, "both are new")]
    for module in (theirs, sae, ours):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(saekern.acceleration.LIBRARIES, "toy_library", "Toys")


def untouched(toy):
    return toy.encode(X).tolist() == [1, 1] and toy.decode(X).tolist() == [0, 0] and set(vars(toy)) == set(vars(Toy()))


def test_methods_are_replaced_and_put_back():
    """Planted: `restore` that left `decode`; a second `restore` that raised; caught."""
    toy = Toy()
    before = {name: value.clone() for name, value in toy.state_dict().items()}
    handle = saekern.accelerate(toy)
    assert toy.encode(X).tolist() == [11, 11]
    assert toy.decode(X).tolist() == [-1, -1]
    assert type(toy) is Toy
    assert list(toy.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in toy.state_dict().items())
    assert untouched(Toy()), "only this object is changed"
    assert handle.notes == ("both are new",)
    assert repr(handle) == "<saekern.Handle: Toy of Toys>\n  both are new"
    handle.restore()
    assert untouched(toy)
    assert repr(handle).startswith("<saekern.Handle: Toy of Toys, restored>")
    handle.restore()
    assert untouched(toy)


def test_leaving_the_context_restores_after_an_error_too():
    toy, handles = Toy(), []

    def fail():
        with saekern.accelerate(toy) as handle:
            handles.append(handle)
            assert handle.active
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert untouched(toy)
    assert not handles[0].active


def test_twice_is_an_error_and_changes_nothing():
    toy = Toy()
    with saekern.accelerate(toy):
        with pytest.raises(ValueError, match="accelerated already"):
            saekern.accelerate(toy)
        assert toy.encode(X).tolist() == [11, 11]
    assert untouched(toy)
    with saekern.accelerate(toy):
        assert toy.encode(X).tolist() == [11, 11]


def test_deep_copies_are_accelerated_objects_of_their_own():
    """Planted: `functools.partial(function, toy)` in the place of the bound method: a copy encoded with the original's
    weight; caught."""
    toy = Toy()
    handle = saekern.accelerate(toy)
    other = copy.deepcopy(toy)
    with torch.no_grad():
        other.weight.fill_(5)
    assert other.encode(X).tolist() == [15, 15]
    handle.restore()
    assert other.encode(X).tolist() == [15, 15]
    restore(other)
    assert other.encode(X).tolist() == [5, 5]
    assert set(vars(other)) == set(vars(Toy()))


def test_pickles_are_the_library_s_own_objects():
    """Planted: functions under their own names; unpickling then failed."""
    toy = Toy()
    with saekern.accelerate(toy):
        data = pickle.dumps(toy)
    assert b"saekern" not in data
    other = pickle.loads(data)
    assert other.encode(X).tolist() == [1, 1]
    with saekern.accelerate(other):
        assert other.encode(X).tolist() == [11, 11]
    assert other.encode(X).tolist() == [1, 1]


def test_restore_reaches_what_an_object_holds():
    trainer = types.SimpleNamespace(saes={"a": Toy()}, sae=Toy(), steps=3)
    saekern.accelerate(trainer.saes["a"]), saekern.accelerate(trainer.sae)
    restore(trainer)
    assert untouched(trainer.saes["a"])
    assert untouched(trainer.sae)


def test_what_others_replaced_since_stays():
    toy = Toy()
    handle = saekern.accelerate(toy)
    toy.encode = lambda x: x - 7
    with pytest.warns(UserWarning, match=r"Toy.encode was replaced after accelerate"):
        handle.restore()
    assert toy.encode(X).tolist() == [-6, -6]
    assert toy.decode(X).tolist() == [0, 0]


def test_overridden_methods_are_refused():
    """Planted: no look at who wrote the method; `Loud` then lost its factor."""
    loud = Loud()
    with pytest.raises(ValueError, match=r"Loud.encode is overridden by Loud, not Toys's own"):
        saekern.accelerate(loud)
    assert loud.encode(X).tolist() == [100, 100]
    with saekern.accelerate(Named()) as handle:
        assert handle.obj.encode(X).tolist() == [11, 11]


def test_replaced_methods_are_refused():
    toy = Toy()
    toy.encode = lambda x: x
    with pytest.raises(ValueError, match=r"Toy.encode was replaced on this object"):
        saekern.accelerate(toy)
    assert toy.decode(X).tolist() == [0, 0]


@pytest.mark.parametrize(("function", "words"), [(missing, "does not exist"), (other_decode, r"takes .* expected")])
def test_other_versions_of_a_library_are_refused(function, words):
    toy = Toy()
    with pytest.raises(ValueError, match=f"{words}.* version of Toys"):
        Handle(toy, "toy_library", "Toys", [Patch(toy, new_encode, ""), Patch(toy, function, "")])
    assert untouched(toy)


def test_an_error_half_way_leaves_the_object_untouched(monkeypatch):
    toy, bound = Toy(), []

    def bind(function, owner):
        if bound:
            raise MemoryError
        bound.append(function)
        return types.MethodType(function, owner)

    monkeypatch.setattr(handles, "bind", bind)
    with pytest.raises(MemoryError):
        saekern.accelerate(toy)
    assert len(bound) == 1
    assert untouched(toy)


@pytest.mark.parametrize("obj", [nn.Linear(2, 2), saekern.TopKSAE(4, 8, 2), None, 3])
def test_other_objects_are_refused(obj):
    with pytest.raises(ValueError, match=r"expected an SAE or a trainer of .*SAELens.*, got "):
        saekern.accelerate(obj)
