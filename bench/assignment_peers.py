"""Other libraries' dense assignment solvers, each called the way that costs it least: float32 in, no total computed."""

import functools
import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import scipy.optimize

from saekern.bench.common import Absent
from saekern.bench.peers import load

Solve = Callable[[np.ndarray], np.ndarray]
"""Cost [n, n] float32 to the column of each row, the least total."""

LAPX = ("lapjvr", "lapjvs", "lapjvh", "lapjvc", "lapjv")
PEERS = (*(f"lapx {name}" for name in LAPX), "lap", "lapjv")
OTHERS = ("scipy", *PEERS)
APART = Path(sys.prefix) / "apart"  # where install_peers.py puts lap, which has lapx's import name


def solver(provider: str) -> tuple[Solve, str]:
    """The function and its library's version. Raises Absent where the library is not installed."""
    if provider == "scipy":
        return lambda cost: scipy.optimize.linear_sum_assignment(cost)[1], scipy.__version__
    if provider == "lapjv":  # by source{d}; its first result is the column of each row
        solve = load("lapjv", "lapjv").lapjv
        return lambda cost: solve(cost)[0], importlib.metadata.version("lapjv")
    if provider == "lap":
        solve, version = lap_itself().lapjv, lap_version()
        return lambda cost: solve(cost, return_cost=False)[0], version
    name = provider.removeprefix("lapx ")
    solve = getattr(load("lap", "lapx"), name)
    side = 0 if name == "lapjv" else 1  # (column of each row, row of each column); the others: (rows, columns)
    return lambda cost: solve(cost, return_cost=False)[side], importlib.metadata.version("lapx")


@functools.cache  # its extension refuses to be loaded twice
def lap_itself() -> ModuleType:
    """lap from its own folder, leaving the name `lap` to lapx."""
    if lap_version() == "":
        raise Absent("lap is not installed; `make bench-peers` installs it")
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "lap"}
    sys.path.insert(0, str(APART))
    try:
        return importlib.import_module("lap")
    finally:
        sys.path.remove(str(APART))
        for name in [name for name in sys.modules if name.split(".")[0] == "lap"]:
            del sys.modules[name]
        sys.modules.update(hidden)


def lap_version() -> str:
    found = importlib.metadata.distributions(name="lap", path=[str(APART)])
    return next((distribution.version for distribution in found), "")
