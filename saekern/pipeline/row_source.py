"""Where the rows of a variant come from: another hook, another model, a random copy of it, shuffled rows."""

from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from saekern import activations
from saekern.stability.dead_salmon import random_model
from saekern.stability.shuffled import shuffled_rows

if TYPE_CHECKING:
    from saekern.pipeline.config import StudyConfig, VariantConfig
    from saekern.pipeline.sources import Sources


class RowSource(NamedTuple):
    """One kind of rows; variants that agree in it share them."""

    model: str
    hook: str
    random: bool
    """Whether the model is its random copy."""
    shuffled: str | None
    """"marginals" or "covariance": what the shuffle keeps."""
    harvested: str | None
    """Its folder under `activations/`; None: the study's own rows, perhaps shuffled."""

    @property
    def own(self) -> bool:
        """Whether these are the study's own rows."""
        return self.harvested is None and self.shuffled is None

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that make the rows, where they are not the study's."""
        return tuple(f"harvest/{self.harvested}-{split}" for split in ("train", "heldout")) if self.harvested else ()


def row_source(config: "StudyConfig", variant: "VariantConfig") -> RowSource:
    settings, random = config.activations, variant.rows_from == "random_model"
    model, hook = variant.model or str(settings.model), variant.hook or settings.hook
    shuffled = variant.rows_from.removeprefix("shuffled_") if variant.rows_from.startswith("shuffled_") else None
    same = (model, hook) == (settings.model, settings.hook)
    place = f"{quote(model, safe='')}@{quote(hook, safe='')}"  # quote: different names stay different
    harvested: str | None = None if same else place
    if random:
        harvested = "random_model" if same else f"random_model@{place}"
    return RowSource(model, hook, random, shuffled, harvested)


class OtherRows:
    """The rows of variants, opened or made when asked for."""

    def __init__(self, sources: "Sources") -> None:
        self.sources = sources
        self._models: dict[tuple[str, bool], Any] = {}
        self._shuffled: dict[tuple[RowSource, str], Any] = {}  # of one source at a time: they lie in memory

    @property
    def seed(self) -> int:
        """Of the random model and of the shuffle."""
        return self.sources.config.stability.null_seed

    def model(self, source: RowSource) -> Any:
        config, key = self.sources.config, (source.model, source.random)
        if source.model == config.activations.model and not source.random:
            return self.sources.model
        if key not in self._models:
            if source.random:
                made = random_model(self.model(source._replace(random=False)), self.seed)
            elif source.model == "tiny":
                made = activations.tiny_model()
            else:
                made = activations.load_model(source.model, config.device)
            self._models = {key: made}  # one at a time
        return self._models[key]

    def rows(self, source: RowSource, split: str) -> Any:
        """`split`: "train", or "heldout" for the rows of the figures."""
        if source.shuffled is not None:
            self._shuffled = {key: made for key, made in self._shuffled.items() if key[0] == source}
            if (source, split) not in self._shuffled:
                plain = self.rows(source._replace(shuffled=None), split)
                made = shuffled_rows(plain, self.seed, keep=source.shuffled)  # type: ignore[arg-type]
                self._shuffled[source, split] = made
            return self._shuffled[source, split]
        if source.harvested is None:
            return self.sources.rows if split == "train" else self.sources.evaluated()
        cache = self._cache(source, split)
        return cache if split == "train" else self.sources.first_rows(cache)

    def text(self, source: RowSource) -> Any:
        if source.shuffled is not None:
            raise ValueError(f"variants: expected rows of a model, got rows shuffled to keep their {source.shuffled}")
        return self.sources.heldout if source.harvested is None else self._cache(source, "heldout")

    def _cache(self, source: RowSource, split: str) -> Any:
        return activations.open_cache(self.sources.folder / "activations" / str(source.harvested) / split)
