"""`saekern stability`: how often the latents of several SAEs, trained by anyone, reappear in each other."""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from saekern.pipeline import StudyConfig, study
from saekern.pipeline.measure import read_json
from saekern.pipeline.steps import write_json
from saekern.report.given import stability_lines

ENOUGH = ("saes", "match", "stability")  # stages whose results are printed


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "saes",
        metavar="SAE",
        nargs="+",
        help="two or more SAEs of the same model width, in any known format, or .npy and .safetensors files with a "
        "dictionary [F, D]",
    )
    parser.add_argument(
        "--threshold", type=float, default=0.7, help="θ: cosine from which two latents match. Default: 0.7."
    )
    parser.add_argument("--epsilon", type=float, default=0.05, help="ε: stable is p ≥ 1 − ε. Default: 0.05.")
    parser.add_argument(
        "--assignment-seeds",
        type=int,
        default=4,
        metavar="N",
        help="SAEs, the first ones, that are also matched one to one, encoders too; 0 skips it. Default: 4.",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N. Default: cpu.")
    parser.add_argument(
        "--out",
        metavar="PATH",
        help="a folder: a study with report.html, which the same command continues, and in which one more SAE costs "
        "its own pairs; a FILE.json: the summary",
    )
    rows = parser.add_argument_group("activations, with --out DIR: for explained variance, dead latents and contexts")
    rows.add_argument("--rows", metavar="CACHE", help="an activation cache")
    rows.add_argument("--model", help='"tiny" or a model name that TransformerLens knows')
    rows.add_argument("--hook", help="the hook point that the SAEs read")
    rows.add_argument("--tokens", metavar="FILE.npy", help="token ids [sequences, context], for models other than tiny")


def run(options: argparse.Namespace) -> int:
    if len(options.saes) < 2:
        raise ValueError(f"SAE: expected at least two folders, got {len(options.saes)}")
    config = StudyConfig.from_json(settings(options))
    progress = not options.quiet and sys.stderr.isatty()
    if options.out and not options.out.endswith(".json"):
        done = study(config, options.out, progress=progress)
        found = done.results().stability
        print(*stability_lines(found, rows=config.has_rows), f"report: {done.report}", sep="\n")
        return 0
    if config.has_rows:
        raise ValueError("--rows, --model: expected --out DIR as well, for the report of what the activations tell")
    with tempfile.TemporaryDirectory() as folder:
        for stage in ENOUGH:
            study(config, folder, stage, progress)
        found = read_json(Path(folder) / "results" / "stability.json")
    print(*stability_lines(found, rows=False), sep="\n")
    if options.out:
        kept = {"stability": found["raw"], "random_null": found["null"]["random"]}
        kept |= {name: found[name] for name in ("intervals", "excess", "iou", "strict")}
        write_json(Path(options.out), kept | {"saes": list(options.saes)})
    return 0


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """The config of the study. Local paths are made absolute, so that the folder can be continued from anywhere."""
    if options.rows and options.model:
        raise ValueError("expected --rows or --model, got both")
    if options.model and not options.hook:
        raise ValueError(f"--model {options.model}: expected --hook as well, the hook point that the SAEs read")
    if (options.hook or options.tokens) and not options.model:
        raise ValueError("--hook, --tokens: expected --model as well")
    source: dict[str, Any] = {"cache": options.rows and absolute(options.rows), "model": options.model}
    if options.model:
        source |= {"hook": options.hook, "tokens": options.tokens and absolute(options.tokens)}
    return {
        "saes": [absolute(path) for path in options.saes],
        "device": options.device,
        "activations": source,
        "stability": {
            "threshold": options.threshold,
            "epsilon": options.epsilon,
            "assignment_seeds": options.assignment_seeds,
        },
        "report": {"title": f"Stability of {len(options.saes)} sparse autoencoders"},
    }


def absolute(path: str) -> str:
    """As it is where nothing lies there: the name of a repository, or a mistake that is reported as it was made."""
    return str(Path(path).absolute()) if Path(path).exists() else path
