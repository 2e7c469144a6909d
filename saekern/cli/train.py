"""`saekern train`: one SAE on an activation cache."""

import argparse
import sys

from saekern import activations
from saekern.cli.options import add_options, given
from saekern.pipeline.architectures import make_sae
from saekern.pipeline.config import SAEConfig
from saekern.training import TrainConfig, parse_config, train
from saekern.training.device import DEVICES, usable_device


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cache", metavar="CACHE", help="folder of an activation cache")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the run; the same folder continues it")
    parser.add_argument("--init-seed", type=int, default=0, help="seed of the initial parameters. Default: 0.")
    parser.add_argument("--device", default="cpu", help=f"where to train: {DEVICES}. Default: cpu.")
    parser.add_argument("--logger", choices=("wandb", "tensorboard"), help="also log there")
    parser.add_argument("--arch", dest="field:sae.arch", default=argparse.SUPPRESS, help="short for --sae.arch")
    add_options(parser.add_argument_group("the SAE"), SAEConfig, "sae.")
    add_options(parser.add_argument_group("the run"), TrainConfig, "train.")


def run(options: argparse.Namespace) -> int:
    values, device = given(options), usable_device(options.device)
    shape, config = parse_config(SAEConfig, values.get("sae", {})), parse_config(TrainConfig, values.get("train", {}))
    rows = activations.open_cache(options.cache)
    sae = make_sae(shape, rows, options.init_seed, device, centred=config.pre_bias_rows > 0)
    progress = not options.quiet and sys.stderr.isatty()
    result = train(sae, rows, config, out=options.out, progress=progress, logger=options.logger)
    if result.log and not options.quiet:
        last = result.log[-1]
        quality = f"EV {last['ev']:.4f}, L0 {last['l0']:.1f}, dead latents {last['dead']}"
        print(f"{options.out}: {last['rows']:,} rows, {quality}")
    return 0
