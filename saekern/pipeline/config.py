"""The settings of a study, and the presets."""

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saekern.pipeline.architectures import check_options
from saekern.pipeline.check import require
from saekern.pipeline.experiments.settings import ExperimentsConfig
from saekern.training import TrainConfig, parse_config
from saekern.training.device import parse_device


@dataclass(frozen=True)
class ActivationsConfig:
    """Where the rows come from."""

    cache: str | None = None
    """An activation cache that exists already. It replaces harvesting, and with it the cross-entropy; contexts it
    gives if it has tokens."""

    model: str | None = "tiny"
    """"tiny" (ships with the package) or a model name that TransformerLens knows; null, for SAEs that exist already:
    there are no rows, and dictionaries alone are studied."""

    hook: str = "blocks.1.hook_resid_post"
    """Hook point whose activations are the rows."""

    tokens: str | None = None
    """An .npy file of token ids [sequences, context]; null: Python's own source files as bytes (for "tiny" only)."""

    context: int = 128
    """Tokens a sequence when `tokens` is null."""

    sequences: int = 4096
    """Training sequences to harvest."""

    heldout_sequences: int = 512
    """Sequences kept from training for the evaluation. From a `tokens` file they are its last ones."""

    batch: int = 32
    """Sequences a forward pass."""

    exclude_bos: bool = True
    """Leave the first position out where it is a special token: its activations are outliers."""

    token_seed: int = 0
    """Which sequences are drawn from the source files."""

    def __post_init__(self) -> None:
        require(self.model != "", "activations.model", "a model name or null", self.model)
        for name in ("context", "sequences", "heldout_sequences", "batch"):
            require(getattr(self, name) >= 1, f"activations.{name}", "at least 1", getattr(self, name))
        if self.cache is None and self.tokens is None and self.model not in ("tiny", None):
            raise ValueError(
                f"activations.tokens: expected an .npy file of token ids for model {self.model!r}, got none "
                "(only the model 'tiny' reads Python's source files as bytes)"
            )


@dataclass(frozen=True)
class SAEConfig:
    """The SAE that every seed trains."""

    arch: str = "topk"
    """Architecture, one of those that docs/architectures.md compares."""

    d_sae: int = 2048
    """F, latents."""

    k: int = 16
    """K, active latents a row. Architectures without a K are compared with K principal components."""

    k_aux: int | None = None
    """Dead latents that reconstruct the residual, where the architecture has that loss; null: half the model width."""

    aux_coefficient: float = 1 / 32
    """Weight of that auxiliary loss; 0 turns it off."""

    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the architecture's class, such as heads=512 m=4 n=8 for arch kron."""

    def __post_init__(self) -> None:
        require(self.d_sae >= 1, "sae.d_sae", "at least 1", self.d_sae)
        require(1 <= self.k <= self.d_sae, "sae.k", f"1 to d_sae = {self.d_sae}", self.k)
        require(self.k_aux is None or self.k_aux >= 0, "sae.k_aux", "at least 0 or null", self.k_aux)
        require(self.aux_coefficient >= 0, "sae.aux_coefficient", "at least 0", self.aux_coefficient)
        check_options(self.arch, self.options)


@dataclass(frozen=True)
class StabilityConfig:
    """What counts as the same latent, and as stable."""

    threshold: float = 0.7
    """θ: two latents match at this cosine or above."""

    epsilon: float = 0.05
    """Stable: reappears in at least 1 − ε of the other seeds. Unstable: in at most ε."""

    min_firings: int = 1
    """Latents that fire on fewer of the held-out rows count as dead: left out, and counted."""

    assignment_seeds: int = 4
    """Seeds, the first ones, whose pairs are also matched one to one, for the IoU, D(0) and D(end): seven
    assignments a pair. 0 or 1 skips it."""

    null_seeds: int = 8
    """Dictionaries in each null; no more than there are seeds."""

    null_seed: int = 0
    """Seed of the nulls' random numbers."""

    def __post_init__(self) -> None:
        require(-1 < self.threshold <= 1, "stability.threshold", "a cosine in (-1, 1]", self.threshold)
        require(0 <= self.epsilon < 0.5, "stability.epsilon", "a fraction in [0, 0.5)", self.epsilon)
        for name, least in (("min_firings", 1), ("assignment_seeds", 0), ("null_seeds", 2), ("null_seed", 0)):
            require(getattr(self, name) >= least, f"stability.{name}", f"at least {least}", getattr(self, name))


@dataclass(frozen=True)
class EvaluationConfig:
    """How much held-out data the quality figures use."""

    rows: int = 65_536
    """Held-out rows for EV, L0 and firing frequency."""

    ce_sequences: int = 32
    """Held-out sequences through the model, for the cross-entropy; 0 skips it."""

    def __post_init__(self) -> None:
        require(self.rows >= 1, "evaluation.rows", "at least 1", self.rows)
        require(self.ce_sequences >= 0, "evaluation.ce_sequences", "at least 0", self.ce_sequences)


@dataclass(frozen=True)
class ReportConfig:
    """What the page shows. Nothing is computed anew when only this changes."""

    title: str = "Stability of a sparse autoencoder"
    """Title of the page."""

    latents: int = 12
    """Latents in each of the two tables, most and least stable."""

    contexts: int = 4
    """Contexts shown a latent."""

    before: int = 32
    """Tokens shown before the active one."""

    after: int = 12
    """Tokens shown after it."""

    explorer: int = 500
    """Latents at either end of p̂ whose partners and contexts the page has. All others have p̂ and frequency there."""

    explorer_random: int = 1000
    """As many more, at random."""

    def __post_init__(self) -> None:
        counts = ("latents", "before", "after", "explorer", "explorer_random")
        for name, least in (("contexts", 1), *((name, 0) for name in counts)):
            require(getattr(self, name) >= least, f"report.{name}", f"at least {least}", getattr(self, name))


ROWS_FROM = ("model", "random_model", "shuffled_marginals", "shuffled_covariance")
AXES = ("architecture", "size", "k", "budget", "layer", "model", "null")


@dataclass(frozen=True)
class VariantConfig:
    """Another SAE than the study's, or the same on other rows. With two seeds or more it is matched within itself."""

    name: str
    """Its name in the report and on disk."""

    sae: SAEConfig = field(default_factory=SAEConfig)
    """What is trained."""

    lr: float | None = None
    """Learning rate; null: that of the study."""

    seeds: int = 1
    """Seeds to train."""

    rows_from: str = "model"
    """"model"; "random_model": its copy with random parameters; "shuffled_marginals" or "shuffled_covariance": the
    model's rows with each dimension, or each principal component, permuted by itself."""

    hook: str | None = None
    """Hook point of the rows; null: that of the study."""

    model: str | None = None
    """Model of the rows, one that reads the study's token ids; null: that of the study."""

    train_rows: int | None = None
    """Rows a training run; null: those of the study."""

    axis: str = "architecture"
    """What it varies, for the report: "architecture", "size", "k", "budget", "layer", "model" or "null"."""

    def __post_init__(self) -> None:
        plain = bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name))
        require(plain, "variants.name", "letters, digits, dots, dashes and underscores", self.name)
        require(self.lr is None or self.lr > 0, "variants.lr", "a positive number or null", self.lr)
        require(self.seeds >= 1, "variants.seeds", "at least 1", self.seeds)
        require(self.rows_from in ROWS_FROM, "variants.rows_from", f"one of {', '.join(ROWS_FROM)}", self.rows_from)
        require(self.axis in AXES, "variants.axis", f"one of {', '.join(AXES)}", self.axis)
        for name in ("hook", "model"):
            value = getattr(self, name)
            require(value is None or bool(value), f"variants.{name}", "a name or null", value)
        least = self.train_rows is None or self.train_rows >= 1
        require(least, "variants.train_rows", "at least 1 or null", self.train_rows)


@dataclass(frozen=True)
class StudyConfig:
    """Settings of `saekern.study`."""

    saes: tuple[str, ...] = ()
    """Nothing is trained: SAEs that exist, in any known format, or files that hold a dictionary [F, D] alone."""

    seeds: int = 8
    """S, SAEs to train; of `saes` their number, whatever stands here."""

    first_seed: int = 0
    """init_seed of the first SAE; the others count up from it."""

    vary: str = "init"
    """What differs between seeds: "init", or "init+data" (the order of the rows as well)."""

    device: str = "cpu"
    """Where SAEs are trained, evaluated and matched, and where a model from the hub runs: cpu, cuda or cuda:N. Results
    differ in their last bits between kinds of device, so that a study that continues on another makes them anew."""

    activations: ActivationsConfig = field(default_factory=ActivationsConfig)
    """Where the rows come from."""

    sae: SAEConfig = field(default_factory=SAEConfig)
    """The SAE that every seed trains."""

    train: TrainConfig = field(default_factory=TrainConfig)
    """The training run of one seed."""

    variants: tuple[VariantConfig, ...] = ()
    """Other SAEs to compare with, in JSON: [{"name": "kron-16", "sae": {"arch": "kron", …}}, …]."""

    stability: StabilityConfig = field(default_factory=StabilityConfig)
    """What counts as stable."""

    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Held-out figures."""

    experiments: ExperimentsConfig = field(default_factory=ExperimentsConfig)
    """Experiments on the trained seeds."""

    report: ReportConfig = field(default_factory=ReportConfig)
    """The page."""

    def __post_init__(self) -> None:
        if self.saes:
            require(len(self.saes) >= 2, "saes", "at least two SAEs", len(self.saes))
            require(len(set(self.saes)) == len(self.saes), "saes", "every SAE once", list(self.saes))
            object.__setattr__(self, "seeds", len(self.saes))
        if not self.has_rows:
            none = "activations.model: null, for no rows, is for a study of `saes`"
            if not self.saes:
                raise ValueError(f"{none}; training needs a model or activations.cache")
            if self.variants:
                raise ValueError(f"{none} alone; variants are trained, on a model's or a cache's rows")
        require(self.seeds >= 2, "seeds", "at least 2 (stability compares seeds)", self.seeds)
        require(self.vary in ("init", "init+data"), "vary", '"init" or "init+data"', self.vary)
        parse_device(self.device)
        names = [variant.name for variant in self.variants]
        require(len(set(names)) == len(names), "variants", "different names", sorted(names))
        for variant in self.variants:
            self._check_variant(variant)

    def _check_variant(self, variant: VariantConfig) -> None:
        name, batch, source = f"variants.{variant.name}", self.train.batch_size, self.activations
        enough = variant.train_rows is None or variant.train_rows >= batch
        require(enough, f"{name}.train_rows", f"at least batch_size = {batch}", variant.train_rows)
        if source.cache is not None:
            of_model = variant.rows_from == "random_model" or variant.hook is not None or variant.model is not None
            if of_model:
                raise ValueError(
                    f"{name}: expected rows_from model or shuffled, and no hook or model of its own, since the rows "
                    f"come from {source.cache}, without a model"
                )
        elif source.tokens is None and variant.model not in (None, "tiny"):
            raise ValueError(
                f"{name}.model: expected activations.tokens, an .npy file of token ids, for model {variant.model!r}, "
                "got none"
            )

    @property
    def has_rows(self) -> bool:
        """Whether there are activations, and not dictionaries alone."""
        return self.activations.cache is not None or self.activations.model is not None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` is the inverse."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, values: Any) -> "StudyConfig":
        """Read what `to_json` wrote; absent keys take their defaults.

        Raises:
            ValueError: an unknown key (the nearest valid one is named), a value of the wrong type or out of range.
        """
        return parse_config(cls, values)

    @classmethod
    def read(cls, path: str | Path) -> "StudyConfig":
        """`from_json` of a file; errors name it."""
        try:
            return cls.from_json(read_values(path))
        except ValueError as error:
            raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def read_values(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file. A study.json gives the config inside it."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values.get("config", {}) if "steps" in values else values
