"""Result files: one CSV a machine class, appended to; every table and picture is made from them alone."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

COLUMNS = (
    "date",  # UTC; the same for all rows that were measured in turn, which makes it the key of a run
    "op",
    "mode",
    "shape",
    "dtype",
    "provider",
    "version",  # of another library
    "median_ms",
    "p20_ms",
    "p80_ms",
    "cpu_ms",  # median over all threads of the process; empty where it was not measured
    "rounds",
    "peak_mib",  # above inputs, parameters, gradients and optimiser state
    "rate",
    "rate_unit",
    "device",
    "instruction_sets",
    "threads",
    "others",  # CPUs that other processes kept busy meanwhile
    "saekern",
    "torch",
    "python",
    "commit",
    "note",  # what a result says about itself, or why there is no figure
)

# GPU runs have these as well; `threads` is empty, `instruction_sets` the architecture ("sm_90").
GPU_COLUMNS = (
    *COLUMNS,
    "bound_ms",  # the time of the lower bound under this machine's own measured roofs (bench/roofline.py)
    "roofline",  # bound_ms / median_ms
    "triton",
    "driver",
)


def default_path(machine_class: str) -> Path:
    """bench/results/ in a checkout; elsewhere (an installed wheel) the folder bench-results/ where the user stands."""
    folder = Path(__file__).resolve().parent
    in_checkout = (folder.parent / "pyproject.toml").exists()
    return (folder / "results" if in_checkout else Path("bench-results")) / f"{machine_class}.csv"


def append(path: Path, rows: Iterable[dict[str, Any]], columns: tuple[str, ...] = COLUMNS) -> None:
    """Raises ValueError where the file has other columns: figures never move under a wrong heading."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists() or path.stat().st_size == 0
    if not new:
        with path.open(newline="") as file:
            header = tuple(next(csv.reader(file)))
        if header != columns:
            raise ValueError(f"{path}: expected the columns {', '.join(columns)}, got {', '.join(header)}")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def read(paths: Iterable[Path]) -> list[dict[str, str]]:
    rows = []
    for path in paths:
        with path.open(newline="") as file:
            rows += list(csv.DictReader(file))
    return rows


def latest_runs(rows: Iterable[dict[str, str]]) -> list[list[dict[str, str]]]:
    """The rows of the last run of each op, mode, shape, dtype, device with its instruction sets, and thread count."""
    runs: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("op", "mode", "shape", "dtype", "device", "instruction_sets", "threads"))
        run = runs.setdefault(key, [])
        if run and run[0]["date"] < row["date"]:
            run.clear()
        if not run or run[0]["date"] == row["date"]:
            run.append(row)
    return list(runs.values())
