"""`saekern convert`: an SAE from one library's files to another's."""

import argparse

from saekern.cli.options import name_and_value
from saekern.formats import Checkpoint, build, examine, formats, save
from saekern.sae import SAE


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", nargs="?", help="a folder, a file, or owner/name on the hub")
    parser.add_argument("out", metavar="OUT", nargs="?", help="the folder to write, or a file where the format is one")
    parser.add_argument("--to", default="saekern", metavar="FORMAT", help="format to write. Default: saekern.")
    parser.add_argument("--from", dest="source_format", metavar="FORMAT", help="format to read. Default: recognised")
    parser.add_argument("--subfolder", metavar="NAME", help="where in SOURCE the SAE lies")
    parser.add_argument("--revision", metavar="NAME", help="of a repository: branch, tag or commit")
    parser.add_argument(
        "--option",
        type=name_and_value,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what SOURCE's files do not say; see --formats",
    )
    parser.add_argument(
        "--out-option", type=name_and_value, action="append", default=[], metavar="NAME=VALUE", help="for OUT's format"
    )
    parser.add_argument(
        "--fold", action="store_true", help="allow scales, norms and thresholds to be folded into the weights"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be read, folded and left out, and stop")
    parser.add_argument("--formats", action="store_true", help="list the formats and their options, and stop")


def run(options: argparse.Namespace) -> int:
    if options.formats:
        print(*list_formats(), sep="\n")
        return 0
    if options.source is None or (options.out is None and not options.dry_run):
        raise ValueError("expected SOURCE and OUT, or SOURCE and --dry-run")
    checkpoint = examine(
        options.source,
        format=options.source_format,
        subfolder=options.subfolder,
        revision=options.revision,
        options=dict(options.option),
        fold=options.fold,
    )
    sae = build(checkpoint)  # a dry run, too, says no to tensors that do not fit
    if options.dry_run or not options.quiet:
        print(*describe(checkpoint, sae), sep="\n")
    if not options.dry_run:
        save(sae, options.out, options.to, options=dict(options.out_option), fold=options.fold)
        if not options.quiet:
            print(f"{options.out}: written as {options.to}")
    return 0


def describe(checkpoint: Checkpoint, sae: SAE) -> list[str]:
    """What was read, and how it differs from what the files hold."""
    lines = [f"{checkpoint.format} -> {type(sae).__name__}({sae.extra_repr()})"]
    for name, tensor in checkpoint.tensors.items():
        lines.append(f"  {name:<12} {str(tensor.dtype).removeprefix('torch.'):<9} {list(tensor.shape)}")
    return lines + [f"- {note}" for note in checkpoint.notes]


def list_formats() -> list[str]:
    lines = []
    for name, module in formats().items():
        lines.append(f"{name}: {(module.__doc__ or '').strip().splitlines()[0]}")
        lines += [f"    {option}: {text}" for option, text in module.OPTIONS.items()]
    return lines
