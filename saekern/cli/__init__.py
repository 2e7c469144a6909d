"""`saekern COMMAND`: each command is a few lines over the library, and imports only what it needs."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from saekern.version import __version__

# Command -> one line of help. Its module in this package has `configure(parser)` and `run(options) -> exit code`.
COMMANDS = {
    "study": "activations, seeds, matching, stability and a report, in one folder",
    "train": "train one SAE on an activation cache",
    "match": "match the latents of two SAEs",
    "stability": "feature stability of several SAEs",
    "convert": "an SAE from one library's files to another's",
    "features": "a page about single latents: contexts, histograms, logit lens, neighbours",
    "bench": "run benchmarks",
    "info": "versions, processor, GPU, and which backend each op uses",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, 2 after an error (one line on stderr), or 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["bench"]:  # has its own options
        return _guarded(lambda: import_module("saekern.cli.bench").run(arguments[1:]), "--debug" in arguments)
    chosen = next((word for word in arguments if word in COMMANDS), None)
    try:
        options = _parser(chosen).parse_args(arguments)
    except ImportError as error:  # a command's module needs something that is not installed
        return _fail(error)
    if options.command is None:
        _parser(None).print_help()
        return 0
    logging.basicConfig(level=logging.WARNING if options.quiet else logging.INFO, format="%(message)s")
    return _guarded(lambda: import_module(f"saekern.cli.{options.command}").run(options), options.debug)


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """Every command is listed; only the chosen one has its options, whose module takes a second to import."""
    parser = argparse.ArgumentParser(prog="saekern", description="Sparse autoencoders: train, match, judge stability.")
    parser.add_argument("--version", action="version", version=f"saekern {__version__}")
    parser.set_defaults(debug=False, quiet=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, line in COMMANDS.items():
        command = commands.add_parser(name, help=line, description=line[0].upper() + line[1:] + ".", allow_abbrev=False)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.add_argument("--quiet", action="store_true", help="no progress bars, no messages")
        if name == chosen and name != "bench":
            import_module(f"saekern.cli.{name}").configure(command)
    return parser


def _guarded(run, debug: bool) -> int:
    try:
        return run() or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        return _fail(error)


def _fail(error: Exception) -> int:
    sys.stderr.write(f"saekern: error: {_one_line(error)}\n")
    return 2


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = " ".join(str(error).split())
    expected = (ValueError, TypeError, OSError, ImportError, FloatingPointError, MemoryError)
    if isinstance(error, expected) and text:
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"
