"""`saekern features`: a page about single latents of an SAE."""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saekern import activations, evaluation, features
from saekern.activations.cache import write_atomically
from saekern.formats import load, read_dictionary
from saekern.report import write_features

log = logging.getLogger(__name__)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sae", metavar="SAE", help="an SAE in any known format")
    parser.add_argument("--out", required=True, metavar="FILE.html", help="the page")
    parser.add_argument("--json", metavar="FILE", help="also write the latents as Neuronpedia's importer reads them")
    parser.add_argument(
        "--source-set",
        metavar="NAME",
        help="for --json: Neuronpedia's name for SAEs of this kind. Default: SAE's name.",
    )
    where = parser.add_argument_group("rows: from a model, from a cache, or from a cache with the model for the lens")
    where.add_argument("--activations", metavar="CACHE", help="a finished cache of the SAE's rows")
    where.add_argument(
        "--model", metavar="NAME", help='"tiny" (ships with the package) or a name that TransformerLens knows'
    )
    where.add_argument("--hook", help="harvest this hook. Default: the one that the SAE's files name.")
    where.add_argument(
        "--tokens",
        metavar="FILE.npy",
        help='harvest these token ids [sequences, context]. "tiny": Python\'s own source, held out, by default',
    )
    where.add_argument("--sequences", type=int, default=1024, metavar="N", help="to harvest. Default: %(default)s.")
    where.add_argument(
        "--context",
        type=int,
        default=128,
        metavar="N",
        help="tokens a sequence without --tokens. Default: %(default)s.",
    )
    where.add_argument(
        "--keep", metavar="DIR", help="keep the harvest in this folder; the next call continues or uses it"
    )
    which = parser.add_argument_group("latents: 100 at random by default, or all of fewer")
    choice = which.add_mutually_exclusive_group()
    choice.add_argument("--latents", type=int, nargs="+", metavar="I", help="these")
    choice.add_argument("--top", type=int, metavar="N", help="the N that fire most often (one more pass over the rows)")
    choice.add_argument("--random", type=int, metavar="N", help="N at random, dead ones like others")
    choice.add_argument("--all", action="store_true", help="every latent")
    which.add_argument("--seed", type=int, default=0, help="of --random. Default: 0.")
    shown = parser.add_argument_group("what is shown")
    shown.add_argument(
        "--against", nargs="+", default=[], metavar="SAE", help="look for each latent's nearest in these SAEs"
    )
    for name, default, text in (
        ("contexts", 8, "strongest contexts of a latent, each of another sequence"),
        ("per-quarter", 2, "contexts from each quarter of the rows in which it fires"),
        ("before", 40, "tokens of a context before the one that it is about"),
        ("after", 16, "tokens after it"),
        ("tokens-shown", 10, "tokens that the logit lens shows at either end"),
        ("batch", 4096, "rows at a time"),
    ):
        shown.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text}. Default: {default}.")


def run(options: argparse.Namespace) -> int:
    if options.activations is None and options.model is None:
        raise ValueError("expected --model NAME, --activations CACHE or both: contexts come from rows")
    if options.activations is not None and (options.tokens or options.hook or options.keep):
        raise ValueError("--tokens, --hook, --keep: for a harvest, which --activations replaces")
    progress = not options.quiet and sys.stderr.isatty()
    sae = load(options.sae)
    with ExitStack() as cleaning:
        model = None if options.model is None else activations.load_model(options.model)
        if options.activations is not None:
            cache = activations.open_cache(options.activations)
            _same_source(sae, cache, model)
        else:
            folder = options.keep or cleaning.enter_context(tempfile.TemporaryDirectory(prefix="saekern-"))
            cache = activations.harvest(model, _hook(sae, options), _sequences(options), folder, progress=progress)
        found = features.dashboard(
            sae,
            cache,
            _chosen(options, sae, cache),
            name=Path(options.sae).name,
            unembedding=None if model is None else features.unembedding_of(model),
            word=_word(model),
            others=_others(options.against, cache.width),
            top=options.contexts,
            per_quarter=options.per_quarter,
            before=options.before,
            after=options.after,
            tokens=options.tokens_shown,
            batch=options.batch,
            progress=progress,
        )
    if options.json:  # first, because it may not be possible
        text = json.dumps(features.neuronpedia(found, options.source_set or found.name), allow_nan=False)
        write_atomically(Path(options.json), text.encode())
    write_features(found, options.out)
    if not options.quiet:
        dead = sum(latent.active == 0 for latent in found.latents)
        print(f"{len(found.latents):,} of {found.count:,} latents on {found.rows:,} rows, {dead:,} of them dead here")
        print(f"page: {options.out}")
    return 0


def _same_source(sae: Any, cache: activations.ActivationCache, model: Any) -> None:
    """A wrong model would give a wrong logit lens without a sign; names of hooks have aliases, so that is a warning."""
    harvested, hook = cache.manifest.get("model"), cache.manifest.get("hook")
    if model is not None and str(model.cfg.model_name) != harvested:
        raise ValueError(f"--model: expected {harvested!r}, whose rows the cache holds, got {model.cfg.model_name!r}")
    trained = sae.provenance.get("hook")
    if trained and hook and trained != hook:
        log.warning("the SAE was trained on %s and the cache holds %s", trained, hook)


def _hook(sae: Any, options: argparse.Namespace) -> str:
    hook = options.hook or sae.provenance.get("hook")
    if not hook:
        raise ValueError(f"--hook: expected the hook whose rows {options.sae} was trained on; its files do not say")
    return str(hook)


def _sequences(options: argparse.Namespace) -> Tensor:
    if options.sequences < 1:
        raise ValueError(f"--sequences: expected at least 1, got {options.sequences}")
    if options.tokens is None:
        if options.model != "tiny":
            raise ValueError(f"--tokens: expected an .npy file of token ids for model {options.model!r}, got none")
        return activations.python_source_sequences("heldout", options.context, options.sequences, seed=0)
    tokens = np.load(options.tokens, mmap_mode="r", allow_pickle=False)
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or len(tokens) < options.sequences:
        raise ValueError(
            f"{options.tokens}: expected integer token ids [at least {options.sequences}, context], got {tokens.dtype} "
            f"{list(tokens.shape)}"
        )
    return torch.from_numpy(np.asarray(tokens[: options.sequences], dtype=np.int64))


def _chosen(options: argparse.Namespace, sae: Any, cache: activations.ActivationCache) -> Tensor:
    count = sae.dictionary.shape[0]
    if options.latents is not None:
        outside = [latent for latent in options.latents if not 0 <= latent < count]
        if outside:
            raise ValueError(f"--latents: expected 0 to {count - 1}, got {outside[0]}")
        return torch.tensor(list(dict.fromkeys(options.latents)))
    if options.top is not None:
        return features.densest(evaluation.density(sae, cache, options.batch), options.top)
    if options.all:
        return torch.arange(count)
    return features.drawn(count, min(100, count) if options.random is None else options.random, options.seed)


def _others(paths: list[str], width: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in paths:
        dictionary = read_dictionary(path)
        if dictionary.shape[1] != width:
            raise ValueError(f"--against: {path} is {dictionary.shape[1]} wide, this SAE {width}")
        name = Path(path).name
        found[name if name not in found else path] = dictionary
    return found


def _word(model: Any) -> Callable[[int], str] | None:
    tokenizer = getattr(model, "tokenizer", None)
    return None if tokenizer is None else lambda token: tokenizer.decode([token])
