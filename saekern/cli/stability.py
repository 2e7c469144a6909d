"""`saekern stability`: how often the latents of several SAEs reappear in each other."""

import argparse
from pathlib import Path

from saekern import stability
from saekern.formats import read_dictionary
from saekern.pipeline.steps import write_json
from saekern.stability.lazy import Lazy


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "saes", metavar="SAE", nargs="+", help="two or more SAEs of the same model width, in any known format"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.7, help="θ: cosine from which two latents match. Default: 0.7."
    )
    parser.add_argument("--epsilon", type=float, default=0.05, help="ε: stable is p ≥ 1 − ε. Default: 0.05.")
    parser.add_argument("--out", metavar="FILE", help="write the summary to this JSON file")


def run(options: argparse.Namespace) -> int:
    if len(options.saes) < 2:
        raise ValueError(f"SAE: expected at least two folders, got {len(options.saes)}")
    dictionaries = Lazy(len(options.saes), lambda i: read_dictionary(options.saes[i]))
    result = stability.feature_stability(dictionaries, options.threshold, options.epsilon)
    shapes = [tuple(dictionary.shape) for dictionary in dictionaries]
    null = stability.random_null(shapes, draws=1, threshold=options.threshold, epsilon=options.epsilon)
    summary, chance = result.to_json(), null.to_json()
    shares = summary["all"]
    print(f"{len(shapes)} dictionaries, θ = {options.threshold:g}, ε = {options.epsilon:g}; dead latents are not known")
    print(f"stable {shares['stable']:.1%}, unstable {shares['unstable']:.1%}, mean p {shares['mean_probability']:.4f}")
    print(f"random dictionaries of these sizes: mean p {chance['match_rate']['mean']:.4f}")
    if result.note:
        print(result.note)
    if options.out:
        write_json(Path(options.out), {"stability": summary, "random_null": chance, "saes": list(options.saes)})
    return 0
