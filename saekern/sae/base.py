"""What every architecture offers to training, evaluation and matching."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from saekern import ops
from saekern.sae.geometric_median import geometric_median


class SparseCodes(NamedTuple):
    """Active latents only: a fixed number for each row, or ragged (CSR)."""

    values: Tensor  # [..., K]; ragged: [nnz]
    indices: Tensor  # int64 in [0, d_sae), the shape of values
    offsets: Tensor | None = None  # [B+1] int64 if ragged: row b owns offsets[b]:offsets[b+1]

    def dense(self, d_sae: int) -> Tensor:
        """[..., d_sae] with zeros elsewhere."""
        if self.offsets is None:
            return self.values.new_zeros(*self.values.shape[:-1], d_sae).scatter(-1, self.indices, self.values)
        rows = torch.arange(self.offsets.numel() - 1, device=self.values.device)
        rows = rows.repeat_interleave(self.offsets.diff(), output_size=self.values.numel())
        dense = self.values.new_zeros(self.offsets.numel() - 1, d_sae)
        return dense.index_put((rows, self.indices), self.values)


class Loss(NamedTuple):
    """What one training step needs."""

    total: Tensor  # scalar, the sum of `terms`
    terms: dict[str, Tensor]  # scalars, weighted; the first is the reconstruction
    x_hat: Tensor  # the shape of x
    codes: SparseCodes


class SAE(nn.Module):
    """The contract between an architecture and the rest.

    A subclass has parameters or properties W_enc [D, F] (a `latent_rows` parameter), W_dec [F, D], b_enc [F], b_dec [D]
    and the methods encode_sparse, loss, config; decode and forward where x̂ is not z W_dec + b_dec. The training loop
    knows nothing else of it: an optimiser step is

        sae.loss(x, dead).total.backward();  sae.project_gradient_();  step();  sae.project_parameters_()

    A subclass whose decoder rows have unit norm only names the parameter in `unit_norm_rows`. A subclass with other
    constraints overrides the two methods, calling super() first.
    """

    architecture: ClassVar[str]
    """The name in config.json."""

    arguments: ClassVar[tuple[str, ...]] = ("d_in", "d_sae", "init_seed")
    """The constructor's arguments that are attributes under the same name, in JSON types: what `config` holds."""

    shown: ClassVar[tuple[str, ...]] = ("d_in", "d_sae")
    """Those that `repr` shows."""

    unit_norm_rows: ClassVar[tuple[str, ...]] = ()
    """Parameters [R, C] with ‖row‖ = 1: the gradient's component along a row is removed, the row normalised after each
    step. An optimiser that fuses both into its step passes fused=True to the methods below."""

    half_weights: ClassVar[tuple[str, ...]] = ()
    """Parameters that the loss gives only to ops which round them to bfloat16 under autocast: there the training loop
    puts bfloat16 copies in their place, from the loss to the projection of its gradient."""

    wide: ClassVar[tuple[str, ...]] = ()
    """Parameters and buffers that stay float32 when the rest becomes half precision: thresholds."""

    subtract_b_dec: bool = True
    """The encoder reads x − b_dec, not x. An architecture where that is a choice has an argument of this name."""

    provenance: dict[str, Any]
    """Where it comes from, JSON types only; saved with it. "model" and "hook" name what its rows were; a format that it
    was read from has an entry of its own."""

    d_in: int
    d_sae: int
    init_seed: int
    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_enc: nn.Parameter
    b_dec: nn.Parameter

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # which refuses any; architectures have their own
        self.provenance = {}

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, JSON types only, without dtype and device."""
        # Files from before the encoder had a choice do not name it; they stay the same.
        encoder = {} if self.subtract_b_dec else {"subtract_b_dec": False}
        return {name: getattr(self, name) for name in self.arguments} | encoder

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in self.shown)

    def encode_sparse(self, x: Tensor) -> SparseCodes:
        raise NotImplementedError

    def loss(self, x: Tensor, dead: Tensor | None = None) -> Loss:
        raise NotImplementedError

    @property
    def dictionary(self) -> Tensor:
        """[F, D], one latent a row: what matching takes."""
        return self.W_dec.detach()

    @property
    def pre_bias(self) -> Tensor | None:
        """What the encoder subtracts from x."""
        return self.b_dec if self.subtract_b_dec else None

    def encode(self, x: Tensor) -> Tensor:
        """Dense codes: x [..., D] -> [..., F]."""
        return self.encode_sparse(x).dense(self.d_sae).reshape(*x.shape[:-1], self.d_sae)

    def decode(self, codes: Tensor | SparseCodes) -> Tensor:
        """Dense [..., F], SparseCodes [..., K] or ragged SparseCodes of B rows -> [..., D]."""
        if not isinstance(codes, SparseCodes):
            return codes @ self.W_dec + self.b_dec
        values, indices, offsets = codes
        if offsets is not None:
            return ops.decode(values, indices, self.W_dec, self.b_dec, offsets)
        width = values.shape[-1]
        x_hat = ops.decode(values.reshape(-1, width), indices.reshape(-1, width), self.W_dec, self.b_dec)
        return x_hat.reshape(*values.shape[:-1], self.d_in)

    def reconstruct(self, codes: Tensor | SparseCodes, x: Tensor) -> Tensor:
        """x̂ [..., D] of x from its codes: `decode`, and back to the scale of x where the encoder normalises rows."""
        return self.decode(codes).reshape(x.shape)

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction: [..., D] -> [..., D]."""
        return self.reconstruct(self.encode_sparse(x), x)

    @torch.no_grad()
    def init_pre_bias_(self, rows: Tensor) -> None:
        """Sets b_dec to the geometric median of a sample of rows [n, D] (Gao et al. 2024, section A.1)."""
        self.b_dec.copy_(geometric_median(self.flat(rows)))

    @torch.no_grad()
    def project_gradient_(self, *, fused: bool = False) -> None:
        """Before the optimiser's step: g ← g − ⟨g, w⟩ w/‖w‖² for each row w of `unit_norm_rows`."""
        for name in () if fused else self.unit_norm_rows:
            weight: Tensor = getattr(self, name)
            if weight.grad is None:
                continue
            square = (weight * weight).sum(1, keepdim=True)
            along = (weight.grad * weight).sum(1, keepdim=True)
            weight.grad.sub_(torch.where(square > 0, along / square, 0) * weight)

    @torch.no_grad()
    def project_parameters_(self, *, fused: bool = False) -> None:
        """After the optimiser's step: w ← w/‖w‖ for each row w of `unit_norm_rows`; zero rows stay."""
        for name in () if fused else self.unit_norm_rows:
            weight: Tensor = getattr(self, name)
            norm = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
            weight.div_(torch.where(norm > 0, norm, 1))

    def tie_(self, rows: Tensor) -> None:
        """Four parameters, so that each latent starts by reading what it writes: encoder and decoder rows are `rows`
        [F, D], biases 0."""
        self.W_enc = latent_rows(rows.clone())
        self.W_dec = nn.Parameter(rows)
        self.b_enc = nn.Parameter(rows.new_zeros(rows.shape[0]))
        self.b_dec = nn.Parameter(rows.new_zeros(rows.shape[1]))

    def flat(self, x: Tensor) -> Tensor:
        """[..., D] -> [B, D]."""
        if x.dim() == 0 or x.shape[-1] != self.d_in:
            raise ValueError(f"x: expected shape [..., {self.d_in}], got {list(x.shape)}")
        return x.reshape(-1, self.d_in)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = {name: getattr(self, name).detach() for name in self.wide}
        super()._apply(fn, recurse)
        for name, exact in before.items():
            tensor: Tensor = getattr(self, name)
            if tensor.dtype.itemsize < 4:
                grad, tensor.grad = tensor.grad, None
                tensor.data = exact.to(tensor.device, torch.float32)
                tensor.grad = None if grad is None else grad.to(torch.float32)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        encoder = self._parameters.get("W_enc")
        if encoder is not None and not encoder.T.is_contiguous():  # assign=True puts the file's layout in place
            self.W_enc = latent_rows(encoder.detach().T.contiguous(), encoder.requires_grad)


def latent_rows(rows: Tensor, requires_grad: bool = True) -> nn.Parameter:
    """The encoder parameter [D, F] over contiguous rows [F, D]: a leaf with stride (1, D), so that each latent is one
    contiguous row for the ops, and `parameter.T` is free. The layout survives Adam, `.to`, deepcopy and loading."""
    return nn.Parameter(rows.t(), requires_grad)
