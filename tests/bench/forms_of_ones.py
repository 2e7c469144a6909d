"""Every kernel as it is compiled where each of its integers is 1: Triton then makes constants of them.

The interpreter does not, so that a B, D, F or K of 1 runs there as any other number."""

import importlib

from saekern.bench.sass import kernel_modules
from saekern.kernels.form import Form


def forms() -> list[Form]:
    """One a kernel and set of absent arguments; only that they compile matters."""
    made: dict[object, Form] = {}
    for name in kernel_modules():
        for form in importlib.import_module(name).forms():
            blind = {p.name for p in form.kernel.params if p.do_not_specialize}
            ones = {n for n, kind in form.signature.items() if kind in ("i32", "i64")} - blind
            signature = {n: kind for n, kind in form.signature.items() if n not in ones}
            constants = form.constants | dict.fromkeys(ones, 1)
            absent = tuple(n for n, value in constants.items() if value is None)
            aligned = tuple(n for n in form.aligned if n not in ones)
            loose = {"matrix": False, "gather": False, "registers": 255}
            made[form.kernel, absent] = form._replace(
                signature=signature, constants=constants, aligned=aligned, **loose
            )
    return list(made.values())
