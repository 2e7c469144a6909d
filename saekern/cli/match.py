"""`saekern match`: two dictionaries, or all pairs of many."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from saekern import matching
from saekern.formats import read_dictionary
from saekern.matching.assignment import Progress
from saekern.matching.geometry import as_dictionary, live_rows
from saekern.pipeline.pairs import match_study
from saekern.report.drawing import need_matplotlib
from saekern.report.matched import asides, describe, describe_all, draw_cosines, histogram
from saekern.sae.files import write_tensors
from saekern.stability.lazy import Lazy
from saekern.version import __version__


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dictionaries",
        metavar="DICTIONARY",
        nargs="+",
        help="A and B: an SAE in any known format, a .npy or .safetensors file [F, D]; --all: two or more, or a study",
    )
    parser.add_argument("--all", action="store_true", help="match every pair; the same command continues a store")
    parser.add_argument(
        "--method", choices=("assignment", "nearest"), default="assignment", help="default: %(default)s"
    )
    parser.add_argument("--verify", action="store_true", help="look at all pairs once more, by other means")
    parser.add_argument(
        "--margin",
        choices=("bound", "exact"),
        default="bound",
        help="of an assignment: a lower bound, or by how much each pair's cosine can fall, which takes two more passes "
        "and a search for each. Default: bound.",
    )
    parser.add_argument("--threshold", type=float, default=0.7, help="cosine from which a match counts. Default: 0.7.")
    parser.add_argument("--tensor", metavar="NAME", help="of safetensors files. Default: W_dec, or their only matrix.")
    parser.add_argument("--transpose", action="store_true", help="files hold [D, F], as nn.Linear keeps a decoder")
    parser.add_argument(
        "--out",
        metavar="PATH",
        help="write index, cosine, margin and the prices u, v to this safetensors file; with --all the folder of the "
        "pairs, for a study DIR/pairs-METHOD by default",
    )
    parser.add_argument("--picture", metavar="FILE.png", help="draw a histogram of the partners' cosines")
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="progress bar. Default: on a terminal, unless --quiet.",
    )


def run(options: argparse.Namespace) -> int:
    if options.picture:  # before the work, not after it
        need_matplotlib("--picture needs")
        if not options.picture.endswith(".png"):
            raise ValueError(f"--picture: expected a file name that ends in .png, got {options.picture!r}")
    if options.progress is None:
        options.progress = not options.quiet and sys.stderr.isatty()
    return match_many(options) if options.all else match_two(options)


def match_two(options: argparse.Namespace) -> int:
    if len(options.dictionaries) != 2:
        raise ValueError(f"expected two dictionaries, got {len(options.dictionaries)}; --all matches every pair")
    paths = options.dictionaries
    a, b = (as_dictionary(read_dictionary(path, options.tensor, options.transpose), path) for path in paths)
    with phases(options.progress and options.method == "assignment") as progress:
        found = matching.match(a, b, options.method, verify=options.verify, margin=options.margin, progress=progress)
    aside = int((~live_rows(a, None)).sum()), int((~live_rows(b, None)).sum())
    print(f"{len(a):,} latents against {len(b):,}, {options.method}")
    print(*describe(found, aside, options.threshold), sep="\n")
    if options.out:
        write(Path(options.out), found, options)
    if options.picture:
        matched, sure = int((~found.cosine.isnan()).sum()), int((found.cosine >= options.threshold).sum())
        note = f"{matched:,} partners, {sure:,} of them at θ or above; set aside: {aside[0]:,} of A, {aside[1]:,} of B"
        title = " → ".join(Path(path).name for path in paths) + f", {options.method}"
        draw_cosines(Path(options.picture), histogram([found.cosine]), title, note, options.threshold)
    return 0


def write(path: Path, found: matching.Matching, options: argparse.Namespace) -> None:
    tensors = {"index": found.index, "cosine": found.cosine, "margin": found.margin}
    facts = {"saekern": __version__, "method": options.method, "metric": "cosine"}
    facts |= dict(zip("ab", options.dictionaries, strict=True))
    if found.certificate is not None:
        proof = found.certificate._asdict()
        tensors |= {"u": proof.pop("u"), "v": proof.pop("v")}
        facts |= {"margins": options.margin, **{name: str(value) for name, value in proof.items()}}
    write_tensors(path, {name: tensor for name, tensor in tensors.items() if tensor is not None}, facts)


def match_many(options: argparse.Namespace) -> int:
    if options.verify or options.margin != "bound":
        raise ValueError("--verify, --margin: expected two dictionaries, not --all")
    paths = options.dictionaries
    if len(paths) == 1:
        store = match_study(paths[0], options.method, options.out, options.progress)
    else:
        rows = Lazy(len(paths), lambda i: read_dictionary(paths[i], options.tensor, options.transpose))
        store = matching.match_all(rows, options.method, options.out, options.progress)
    print(*describe_all(store, options.threshold), sep="\n")
    if store.folder is not None:
        print(f"pairs: {store.folder}")
    if options.picture:
        title = f"{len(store)} pairs of {len(store.sizes)} dictionaries, {store.method}"
        note = f"set aside: {sum(asides(store)):,} of {sum(store.sizes):,} latents"
        counts = histogram(pair.forward.cosine for pair in store)
        draw_cosines(Path(options.picture), counts, title, note, options.threshold)
    return 0


@contextmanager
def phases(shown: bool) -> Iterator[Progress | None]:
    """What `match(progress=)` takes, and a bar that begins anew with each phase."""
    if not shown:
        yield None
        return
    with tqdm(bar_format="{desc:<10} {percentage:3.0f}% |{bar}| {elapsed}", total=1, leave=False) as bar:

        def report(phase: str, done: int, total: int) -> None:
            bar.set_description_str(phase, refresh=False)
            bar.n, bar.total = min(done, total), total
            bar.refresh()

        yield report
