"""`saekern match`: two SAEs."""

import argparse
from pathlib import Path

import torch

from saekern import matching, sae
from saekern.sae.files import write_tensors


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="folder of an SAE")
    parser.add_argument("b", metavar="B", help="folder of another; the number of latents may differ")
    parser.add_argument(
        "--method", choices=("assignment", "nearest"), default="assignment", help="default: %(default)s"
    )
    parser.add_argument("--threshold", type=float, default=0.7, help="cosine from which a match counts. Default: 0.7.")
    parser.add_argument("--out", metavar="FILE", help="write index, cosine and margin to this safetensors file")


def run(options: argparse.Namespace) -> int:
    a, b = sae.load(options.a), sae.load(options.b)
    result = matching.match(a, b, options.method)
    cosine = result.cosine[~result.cosine.isnan()]
    matched = int((cosine >= options.threshold).sum())
    print(f"{len(result.index)} latents against {b.d_sae}, {options.method}")
    print(f"cosine ≥ {options.threshold:g}: {matched} ({matched / len(result.index):.1%})")
    if len(cosine):
        print(f"cosine: mean {cosine.mean():.4f}, median {cosine.median():.4f}")
    if result.certificate is not None:
        print(f"exact: {result.certificate.exact}, gap {result.certificate.gap:.3g}")
    if options.out:
        tensors = {"index": result.index, "cosine": result.cosine, "margin": result.margin}
        kept = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
        write_tensors(Path(options.out), kept, {"method": options.method})
    return 0
