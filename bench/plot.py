"""`python -m saekern.bench.plot`: a picture of each run, from the committed CSV files and nothing else."""

import argparse
import re
import sys
from pathlib import Path

from saekern.bench.record import latest_runs, read

ROOF = "gemm"  # providers that are the machine's own roof, drawn as lines


def main(argv: list[str] | None = None) -> int:
    folder = Path(__file__).resolve().parent
    parse = argparse.ArgumentParser(prog="python -m saekern.bench.plot", description=__doc__)
    parse.add_argument("--results", type=Path, default=folder / "results", help="folder of CSV files")
    parse.add_argument("--out", type=Path, default=Path("bench-plots"), help="folder for the pictures")
    options = parse.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    for run in latest_runs(read(sorted(options.results.glob("*.csv")))):
        first = run[0]
        name = "-".join(first[key] for key in ("op", "mode", "shape", "threads"))
        draw(run, options.out / (re.sub(r"[^A-Za-z0-9]+", "-", name) + ".png"))
    return 0


def draw(run: list[dict[str, str]], path: Path) -> None:
    """Horizontal bars of medians with whiskers from 20 to 80 %; the roof is a line across all of them."""
    from matplotlib.figure import Figure

    bars = [row for row in run if not row["provider"].startswith(ROOF)][::-1]
    roofs = [row for row in run if row["provider"].startswith(ROOF)]
    figure = Figure(figsize=(7, 0.4 * len(bars) + 1.4), layout="constrained")
    axes = figure.subplots()
    medians = [float(row["median_ms"]) for row in bars]
    whiskers = [
        [max(0.0, middle - float(row["p20_ms"])) for row, middle in zip(bars, medians, strict=True)],
        [max(0.0, float(row["p80_ms"]) - middle) for row, middle in zip(bars, medians, strict=True)],
    ]
    colours = ["#1b7f79" if row["provider"] == "saekern" else "#9aa5b1" for row in bars]
    axes.barh([row["provider"] for row in bars], medians, xerr=whiskers, color=colours, capsize=3)
    if roofs:
        best = min(roofs, key=lambda row: float(row["median_ms"]))
        axes.axvline(float(best["median_ms"]), color="#b3541e", linestyle="--", label=best["provider"])
        axes.legend(loc="best", frameon=False)
    first = run[0]
    axes.set_xlabel("ms, median and 20–80 %")
    axes.set_title(
        f"{first['op']}, {first['mode']}\n{first['shape']}, {first['device']}, {first['threads']} threads", size=9
    )
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
