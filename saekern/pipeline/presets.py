"""Studies by name."""

from typing import Any

from saekern.pipeline.config import (
    ActivationsConfig,
    ReportConfig,
    SAEConfig,
    StabilityConfig,
    StudyConfig,
    VariantConfig,
)
from saekern.pipeline.experiments import EXPERIMENTS
from saekern.pipeline.experiments.settings import ExperimentsConfig
from saekern.training import TrainConfig


def quickstart() -> StudyConfig:
    """Eight SAEs on half a million rows of the shipped model: under three minutes on two cores."""
    return StudyConfig(
        seeds=8,
        activations=ActivationsConfig(model="tiny", context=128, sequences=4096, heldout_sequences=512),
        sae=SAEConfig(d_sae=2048, k=16),
        train=TrainConfig(rows=780_288, batch_size=2048, lr=6e-3, decay=0.3, log_every=16, checkpoint_every=127),
        report=ReportConfig(title="Stability of a sparse autoencoder on a byte-level language model"),
    )


def pareto() -> StudyConfig:
    """Every architecture at several sparsities on 400,000 rows of the shipped model, three minutes on two cores:
    docs/architectures.md shows the result."""

    def variant(name: str, arch: str, k: int = 16, d_sae: int = 1024, **options: Any) -> VariantConfig:
        return VariantConfig(name, SAEConfig(arch=arch, d_sae=d_sae, k=k, options=options))

    heads: dict[str, Any] = {"m": 2, "n": 4}
    jump: dict[str, Any] = {
        "bandwidth": 2.0,
        "initial_threshold": 2.0,
    }  # in units of the scores, which are some 10 where active
    return StudyConfig(
        seeds=2,
        activations=ActivationsConfig(model="tiny", context=128, sequences=4096, heldout_sequences=512),
        sae=SAEConfig(d_sae=1024, k=16),
        train=TrainConfig(rows=399_360, batch_size=2048, lr=6e-3, decay=0.3, log_every=16, checkpoint_every=1000),
        variants=(
            *(variant(f"topk-{k}", "topk", k) for k in (4, 8, 16, 32, 64)),
            *(variant(f"batch_topk-{k}", "batch_topk", k) for k in (8, 16, 32, 64)),
            variant("hierarchical", "hierarchical_topk", 64),
            *(variant(f"matryoshka-{k}", "matryoshka", k) for k in (8, 16, 32, 64)),
            *(variant(f"kron-{k}", "kron", k, **heads) for k in (8, 16, 32, 64)),
            variant("kron_relu", "kron", **heads, activation="relu"),
            variant("kron_product", "kron", **heads, activation="product"),
            variant("topk_of_kron_size", "topk", d_sae=896),  # as many parameters as kron
            variant("topk_of_kron_flops", "topk", d_sae=768),  # as many products in the encoder
            *(variant(f"relu-{c:g}", "relu", l1_coefficient=c) for c in (0.05, 0.1, 0.2, 0.4)),
            *(variant(f"jumprelu-{t}", "jumprelu", l0_coefficient=1.0, target_l0=t, **jump) for t in (8, 16, 32, 64)),
            *(variant(f"gated-{c:g}", "gated", l1_coefficient=c) for c in (0.1, 0.2, 0.4)),
            variant("archetypal_relaxed", "archetypal", points=512, relaxation=1.0),
            variant("archetypal_pure", "archetypal", points=512, relaxation=0.0),
        ),
        stability=StabilityConfig(assignment_seeds=2, null_seeds=2),
        report=ReportConfig(title="Explained variance against sparsity, by architecture"),
    )


def papers() -> StudyConfig:
    """The experiments of the papers on seed dependence with as many seeds, 96, of F = 2048 on a million rows of the
    shipped model: under two hours on two cores. docs/papers.md sets the numbers beside theirs."""

    def variant(
        name: str, axis: str, arch: str = "topk", d_sae: int = 2048, k: int = 8, **options: Any
    ) -> VariantConfig:
        fields = {name: options.pop(name) for name in ("rows_from", "hook", "train_rows", "lr") if name in options}
        sae = SAEConfig(arch=arch, d_sae=d_sae, k=k, options=options)
        return VariantConfig(name, sae, seeds=5, axis=axis, **fields)

    jump: dict[str, Any] = {"bandwidth": 2.0, "initial_threshold": 2.0, "l0_coefficient": 1.0, "target_l0": 8}
    return StudyConfig(
        seeds=96,
        activations=ActivationsConfig(model="tiny", context=128, sequences=8192, heldout_sequences=512),
        sae=SAEConfig(d_sae=2048, k=8),
        train=TrainConfig(rows=1_048_576, batch_size=512, lr=3e-3, decay=0.3, log_every=64, checkpoint_every=1024),
        variants=(
            variant("relu", "architecture", "relu", l1_coefficient=0.4),
            variant("jumprelu", "architecture", "jumprelu", **jump),
            variant("gated", "architecture", "gated", l1_coefficient=0.4),
            variant("batch_topk", "architecture", "batch_topk"),
            variant("matryoshka", "architecture", "matryoshka"),
            variant("hierarchical", "architecture", "hierarchical_topk"),
            variant("kron", "architecture", "kron", m=2, n=4),
            variant("archetypal", "architecture", "archetypal", points=512, relaxation=1.0),
            variant("size-1024", "size", d_sae=1024),
            variant("k-16", "k", k=16),
            variant("budget-327680", "budget", train_rows=327_680),
            variant("layer-3", "layer", hook="blocks.3.hook_resid_post"),
            variant("dead_salmon", "null", rows_from="random_model"),
            variant("shuffled_marginals", "null", rows_from="shuffled_marginals"),
        ),
        stability=StabilityConfig(assignment_seeds=5),
        experiments=ExperimentsConfig(run=tuple(EXPERIMENTS)),
        report=ReportConfig(title="The papers' experiments on a byte-level language model"),
    )


PRESETS = {"papers": papers, "pareto": pareto, "quickstart": quickstart}


def preset(name: str) -> StudyConfig:
    """A preset by name.

    Raises:
        ValueError: no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]()
