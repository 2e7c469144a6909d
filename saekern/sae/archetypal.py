"""Archetypal sparse autoencoders: any of our encoders over atoms that are mixtures of given points."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from saekern.sae import mixing, simplex
from saekern.sae.base import SAE, Loss
from saekern.sae.initial import check_sizes, seed_or_new

PROJECTIONS: dict[str, Callable[[Tensor], None]] = {
    "simplex": simplex.euclidean_,
    "normalize": simplex.normalize_,
}


class Computed(NamedTuple):
    """The dictionary of some parameters, and what tells whether they still are these."""

    atoms: Tensor  # [F, D], no gradient
    atoms_version: int
    sources: tuple[Tensor, ...]  # their memory, held so that no other tensor gets its address
    versions: tuple[int, ...]

    def of(self, tensors: tuple[Tensor, ...]) -> bool:
        return (
            self.atoms._version == self.atoms_version
            and len(tensors) == len(self.sources)
            and all(
                held.data_ptr() == tensor.data_ptr() and held.dtype == tensor.dtype and version == tensor._version
                for held, version, tensor in zip(self.sources, self.versions, tensors, strict=True)
            )
        )


class ArchetypalSAE(SAE):
    """D = (W C + Λ) · exp(m): each atom a mixture of points C, within δ of it; the rest is the base's.

    W [F, n'] has rows on the simplex (≥ 0, sum 1), Λ [F, D] rows of norm at most δ. So without the multiplier every
    atom lies within δ of the convex hull of the points. δ = 0 has no Λ: A-SAE; δ > 0: RA-SAE. The encoder and the
    loss are the base's, whose W_dec is D: an instance is of a class that derives from ArchetypalSAE and from the
    base's.

    The encoder starts tied to the atoms, w = d/(‖d‖² √K); it is free afterwards.

    An atom is added to b_dec, so `points` are what rows look like after b_dec is taken away. As published: points as
    they are and b_dec kept at 0 (`pre_bias_rows=0` in training starts it there). Centred: points minus the mean.

    Parameters: W, Lambda (δ > 0), multiplier [1] (if asked for), and the base's except W_dec; buffer: points [n', D].

    Args:
        d_in, d_sae: D and F.
        points: C [n', D], kept fixed and saved, such as `archetypal_points(rows, count, seed=…)`. A mapping is what
            config() holds in their place, for a file's loader.
        relaxation: δ ≥ 0.
        base: an SAE class or its name, with W_dec [F, D].
        base_args: its arguments, without those that are here.
        init: what W starts as. "dirichlet": rows from the symmetric Dirichlet distribution whose parameters sum to
            `concentration`. "points": each atom one point, distinct while there are some left. "eye": atom i is point
            i, and atoms beyond n' are zero, as in the library of the paper; they stay zero until a gradient moves their
            row of W, and have no cosine. Or W itself [F, n'], row-stochastic but for zero rows.
        concentration: 1: an atom is mostly one or two points; n': uniform on the simplex, all atoms near the mean.
        projection: "simplex", the nearest point of the simplex, or "normalize", max(w, 0)/Σ (`saekern.sae.simplex`
            says what becomes of rows with nothing positive).
        multiplier: train m, one number for all atoms, from 0.
        init_seed: of W and of the base's parameters; the points are the caller's.
        dtype, device: of the parameters and the points.

    Projections follow the optimiser's step, in `project_parameters_`. The published library projects in the next
    forward pass instead: what it saves or compares after a step lies off the constraint set, and its δ = 0 is 0/0.

    Cost of a step beyond the base's: D takes 2·F·n'·D flops and its gradient as many, whatever the batch; the
    projection reads W a few times; W and its moments are 3·F·n' numbers. D is kept until a parameter changes, so that
    encoding and decoding recompute nothing. Changes through `.data`, which autograd does not see either, go unnoticed.

    Source: Fel et al. 2025 (arXiv 2502.12892), section 6.

    Raises:
        ValueError: δ < 0, points or W of the wrong shape, empty or not finite, an unknown name.
    """

    architecture = "archetypal"
    base_architecture: ClassVar[str]
    points: Tensor
    W: nn.Parameter

    def __new__(cls, *args: Any, base: str | type[SAE] = "topk", **kwargs: Any) -> "ArchetypalSAE":
        return super().__new__(cls if cls is not ArchetypalSAE else over(base))

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        points: Tensor | Mapping[str, Any],
        relaxation: float = 0.01,
        base: str | type[SAE] = "topk",
        base_args: Mapping[str, Any] | None = None,
        init: str | Tensor | Mapping[str, Any] = "dirichlet",
        concentration: float = 1.0,
        projection: str = "simplex",
        multiplier: bool = False,
        init_seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        check_sizes(d_in, d_sae)
        if not 0 <= relaxation < float("inf"):
            raise ValueError(f"relaxation: expected a finite number >= 0, got {relaxation}")
        if projection not in PROJECTIONS:
            raise ValueError(f"projection: expected one of {', '.join(PROJECTIONS)}, got {projection!r}")
        device = torch.device(device or torch.get_default_device())
        dtype = dtype or torch.get_default_dtype()
        points, described = _given("points", points, ("n'", d_in), device)
        seed = seed_or_new(init_seed)
        super().__init__(d_in, d_sae, init_seed=seed, dtype=dtype, device=device, **(base_args or {}))
        del self._parameters["W_dec"]
        self._computed: Computed | None = None
        self._shared: Tensor | None = None
        self._projected: tuple[Tensor, int] | None = None
        self._points_described, self._init_described = described, init
        self.relaxation, self.concentration, self.projection = float(relaxation), float(concentration), projection
        self.register_buffer("points", points.to(device, dtype, copy=True))
        if isinstance(init, str):
            weights = mixing.initial(init, d_sae, points.shape[0], seed, concentration, device)
        else:
            weights, self._init_described = _given("init", init, (d_sae, points.shape[0]), device)
            mixing.check_stochastic(weights)
        self.W = nn.Parameter(weights.to(device, dtype, copy=True))
        self.Lambda = nn.Parameter(self.points.new_zeros(d_sae, d_in)) if relaxation else None
        self.multiplier = nn.Parameter(self.points.new_zeros(1)) if multiplier else None
        self._tie_encoder_()

    @torch.no_grad()
    def _tie_encoder_(self) -> None:
        """Encoder rows d/(‖d‖² √K): atoms have the norms of data, and the K active ones point much the same way. On the
        shipped model's rows the first FVU is 0.7 with this, 17 without √K, and 224 with the base's unit rows. Latents
        without an atom keep the base's row, at the others' mean norm."""
        encoder = self._parameters.get("W_enc")
        if encoder is None or encoder.is_meta:
            return
        atoms = self.dictionary
        square = atoms.square().sum(1, keepdim=True)
        live, active = square > 0, getattr(self, "k", 1)
        mean = torch.where(live, square.rsqrt(), 0).sum() / live.sum().clamp(min=1)
        encoder.T.copy_(torch.where(live, atoms / square, encoder.T * mean) / active**0.5)

    def config(self) -> dict[str, Any]:
        own = ("d_in", "d_sae", "init_seed")
        base = super().config()
        return {
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "points": self._points_described,
            "relaxation": self.relaxation,
            "base": self.base_architecture,
            "base_args": {name: value for name, value in base.items() if name not in own},
            "init": self._init_described,
            "concentration": self.concentration,
            "projection": self.projection,
            "multiplier": self.multiplier is not None,
            "init_seed": self.init_seed,
        }

    def extra_repr(self) -> str:
        own = f"points={self.points.shape[0]}, relaxation={self.relaxation:g}, base={self.base_architecture}"
        return f"{super().extra_repr()}, {own}"

    @property
    def W_dec(self) -> Tensor:  # type: ignore[override]
        """D [F, D], the value kept until a parameter changes."""
        if "W_dec" in self._parameters:  # while the base's constructor runs
            return self._parameters["W_dec"]  # type: ignore[return-value]
        return self._atoms() if self._shared is None else self._shared

    @property
    def zero_atoms(self) -> Tensor:
        """Atoms without a direction, bool [F]."""
        return (self.dictionary == 0).all(1)

    def loss(self, x: Tensor, dead: Tensor | None = None) -> Loss:
        with self._one_dictionary():
            return super().loss(x, dead)

    @torch.no_grad()
    def project_parameters_(self, *, fused: bool = False) -> None:
        """After the optimiser's step: rows of W onto the simplex, rows of Λ to norm δ where they are longer."""
        super().project_parameters_(fused=fused)
        if self._projected is None or not _same(self._projected, self.W):
            PROJECTIONS[self.projection](self.W)
            self._projected = (self.W.detach(), self.W._version)
        if self.Lambda is not None:
            norm = torch.linalg.vector_norm(self.Lambda, dim=1, keepdim=True)
            self.Lambda.mul_(torch.where(norm > self.relaxation, self.relaxation / norm, 1))

    @contextmanager
    def _one_dictionary(self) -> Iterator[None]:
        """Inside, every reader of W_dec gets the same tensor: one gradient of D a step, one product for W's."""
        outer, self._shared = self._shared, self.W_dec
        try:
            yield
        finally:
            self._shared = outer

    def _sources(self) -> tuple[Tensor, ...]:
        return tuple(t for t in (self.W, self.points, self.Lambda, self.multiplier) if t is not None)

    def _atoms(self) -> Tensor:
        tensors = self._sources()
        if torch.compiler.is_compiling():  # the compiler sees the formula, and nothing that outlives the call
            return mixing.atoms(self.W, self.points, self.Lambda, self.multiplier)
        captured = self.W.is_cuda and torch.cuda.is_current_stream_capturing()
        if captured or self.W.is_meta or any(tensor.is_inference() for tensor in tensors):
            with torch.no_grad():
                value = mixing.atoms(*self._arguments())
        else:
            if self._computed is None or not self._computed.of(tensors):
                self._computed = None  # its memory first
                with torch.inference_mode(False), torch.no_grad():
                    value = mixing.atoms(*self._arguments())
                held, versions = tuple(t.detach() for t in tensors), tuple(t._version for t in tensors)
                self._computed = Computed(value, value._version, held, versions)
            value = self._computed.atoms
        return mixing.Atoms.apply(*self._arguments(), value)

    def _arguments(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        return self.W, self.points, self.Lambda, self.multiplier

    def _forget(self) -> None:
        self._computed = self._projected = None

    def _apply(self, *args: Any, **kwargs: Any) -> "ArchetypalSAE":
        self._forget()
        return super()._apply(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        """For copy and pickle: a class made at run time is found by its base's name, and what is kept stays behind."""
        state = self.__dict__ | {"_computed": None, "_projected": None, "_shared": None}
        return _blank, (self.base_architecture,), state


@cache
def _class_over(base: type[SAE]) -> type[ArchetypalSAE]:
    without = {
        name: tuple(n for n in getattr(base, name) if n != "W_dec") for name in ("unit_norm_rows", "half_weights")
    }
    members = {
        **without,
        "base_architecture": base.architecture,
        "__module__": __name__,
        "__doc__": ArchetypalSAE.__doc__,
    }
    return type(f"ArchetypalSAE[{base.__name__}]", (ArchetypalSAE, base), members)


def over(base: str | type[SAE]) -> type[ArchetypalSAE]:
    """The class of archetypal SAEs over a base."""
    from saekern.sae.files import ARCHITECTURES  # which lists this file's class

    if isinstance(base, str):
        known = {name: cls for name, cls in ARCHITECTURES.items() if name not in ("archetypal", "normalized")}
        if base not in known:
            raise ValueError(f"base: expected an SAE class or one of {', '.join(sorted(known))}, got {base!r}")
        base = known[base]
    if not (isinstance(base, type) and issubclass(base, SAE)) or issubclass(base, ArchetypalSAE):
        raise ValueError(f"base: expected the class of an SAE other than ArchetypalSAE, got {base!r}")
    return _class_over(base)  # type: ignore[arg-type]


def describe(value: Tensor) -> dict[str, Any]:
    """What config() holds in the place of a tensor argument: its shape and the hash of its values."""
    digest = hashlib.sha256(value.detach().cpu().double().contiguous().numpy().tobytes()).hexdigest()[:16]
    return {"shape": list(value.shape), "sha256": digest}


def _blank(base: str) -> ArchetypalSAE:
    made = over(base)
    return made.__new__(made)


def _same(held: tuple[Tensor, int], tensor: Tensor) -> bool:
    return held[0].data_ptr() == tensor.data_ptr() and held[1] == tensor._version


def _given(
    name: str, value: Tensor | Mapping[str, Any], shape: tuple[int | str, ...], device: torch.device
) -> tuple[Tensor, dict[str, Any]]:
    """A tensor argument checked, and its description for the config; from a description, on "meta", the empty tensor
    that a file's will replace."""
    if not isinstance(value, Tensor):
        if device.type != "meta":
            raise ValueError(f"{name}: expected a tensor [{', '.join(map(str, shape))}], got {type(value).__name__}")
        return torch.empty(value["shape"], device="meta"), dict(value)
    wrong = value.dim() != 2 or any(isinstance(w, int) and w != g for w, g in zip(shape, value.shape, strict=True))
    if wrong or value.numel() == 0 or not value.is_floating_point():
        wanted = f"a floating-point tensor [{', '.join(map(str, shape))}] that is not empty"
        raise ValueError(f"{name}: expected {wanted}, got {value.dtype} {list(value.shape)}")
    value = value.detach()
    if not torch.isfinite(value).all():
        raise ValueError(f"{name}: expected finite entries, got NaN or infinity")
    return value, describe(value)
