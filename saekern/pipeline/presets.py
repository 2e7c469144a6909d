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


PRESETS = {"pareto": pareto, "quickstart": quickstart}


def preset(name: str) -> StudyConfig:
    """A preset by name.

    Raises:
        ValueError: no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]()
