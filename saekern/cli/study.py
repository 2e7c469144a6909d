"""`saekern study`: the main job."""

import argparse
import sys

from saekern.cli.options import add_options, given, merged
from saekern.pipeline import PRESETS, StudyConfig, plan, preset, study
from saekern.pipeline.config import read_values
from saekern.pipeline.stages import STAGES
from saekern.report import verdicts
from saekern.report.given import stability_lines


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="JSON file of settings; absent keys take defaults")
    parser.add_argument("--preset", help=f"start from a preset: {', '.join(PRESETS)}")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the study; the same folder continues it")
    parser.add_argument("--only", metavar="STAGE", help=f"run one stage: {', '.join(STAGES)}")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, why, and what it costs")
    parser.add_argument("--arch", dest="field:sae.arch", default=argparse.SUPPRESS, help="short for --sae.arch")
    add_options(parser, StudyConfig, skip=("variants",))  # a list of objects: in CONFIG


def run(options: argparse.Namespace) -> int:
    if options.config and options.preset:
        raise ValueError("expected CONFIG or --preset, got both")
    base = preset(options.preset).to_json() if options.preset else read_values(options.config) if options.config else {}
    config = StudyConfig.from_json(merged(base, given(options)))
    if options.dry_run:
        show_plan(config, options.out)
        return 0
    done = study(config, options.out, options.only, progress=not options.quiet and sys.stderr.isatty())
    if not options.quiet:
        summarise(done)
    return 0


def summarise(done) -> None:
    """The verdicts, if the study has come that far, and where the report is."""
    if done.report.exists():
        results = done.results()
        for line in verdicts(results.evaluation) if results.evaluation else ():
            word = {True: "met", False: "MISSED", None: "not measured"}[line.passed]
            print(f"{line.name}: {word}. {line.sentence}")
        if results.saes:
            print(*stability_lines(results.stability, rows=done.config.has_rows), sep="\n")
        print(f"report: {done.report}")
    elif not done.ran:
        print("nothing to do")


def show_plan(config: StudyConfig, out: str) -> None:
    header = f"{'stage':<10} {'runs':>9} {'rows':>13} {'GFLOP':>10} {'seconds':>8} {'disk MB':>8}  why"
    print(header)
    lines = plan(config, out)
    for line in lines:
        runs = f"{line.runs} of {line.of}"
        print(
            f"{line.stage:<10} {runs:>9} {line.rows:>13,} {line.flops / 1e9:>10,.0f} {line.seconds:>8,.0f} "
            f"{line.bytes / 1e6:>8,.0f}  {line.why}"
        )
    seconds, size = sum(line.seconds for line in lines), sum(line.bytes for line in lines)
    print(
        f"in all about {seconds:,.0f} s and {size / 1e6:,.0f} MB on disk: estimates, from a matrix product timed here"
        + ("" if config.device == "cpu" else f" on the CPU; none for {config.device}")
    )
