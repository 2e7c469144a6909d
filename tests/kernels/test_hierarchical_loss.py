"""The Triton hierarchical loss and its gradients against the sums over prefixes, written out in float64."""

import pytest
import torch
from bounds import assert_within_bound
from sparse_codes import SHAPES, indices_with_hot_latent, ragged_offsets

from saekern.kernels import hierarchical_loss_backward as backward
from saekern.kernels.hierarchical_loss import hierarchical_loss
from saekern.kernels.hierarchical_loss_backward import BUFFER, hierarchical_loss_backward, plan
from saekern.kernels.latent_order import latent_order
from saekern.kernels.segment_gradients import CHUNK

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ALL = [True] * 4
GRAD = 0.7


class Problem:
    """`cuts`: "all" prefixes from 1 to K, "few" budgets for all rows, or "rows": 3 of each row's own, 0 among them."""

    def __init__(self, device, batch, k, width, latents, cuts="all", dtype=torch.float32, ragged=False, bias=True):
        indices = indices_with_hot_latent(batch, k, latents)
        self.offsets = None
        counts = torch.full((batch,), k)
        if ragged:
            self.offsets = ragged_offsets(batch, k)
            indices = indices.flatten()[: self.offsets[-1]].contiguous()
            counts = self.offsets.diff()
            self.offsets = self.offsets.to(device)
        values, weight = torch.rand(indices.shape) + 0.1, torch.randn(latents, width) / max(1, k)
        self.values, self.weight = values.to(device, dtype), weight.to(device, dtype)
        self.indices = indices.to(device)
        self.bias = torch.randn(width).to(device, dtype) if bias else None
        self.target = torch.randn(batch, width).to(device, dtype)
        most = int(counts.max()) if batch else k
        if cuts == "few" and not ragged:
            self.cuts = torch.tensor([1, k // 3, k // 3, k - 1]).clamp(0, k).sort().values  # the last code is in none
        elif cuts == "all" and not ragged:
            self.cuts = torch.arange(1, most + 1)
        else:
            part = torch.arange(1, most + 1) if cuts == "all" else torch.tensor([0, most // 2, most])
            self.cuts = torch.minimum(part, counts[:, None])
        self.cuts = self.cuts.to(device)
        self.weights = (torch.rand(self.cuts.shape[-1]) + 0.5).to(device)
        self.weights /= self.weights.sum() if self.weights.numel() else 1
        self.grad = torch.tensor(GRAD, device=device)

    def arguments(self):
        return self.values, self.indices, self.weight, self.bias, self.target

    def run(self, order=(None, None), need=ALL):
        last = self.cuts, self.weights, self.offsets, *order
        loss, x_hat = hierarchical_loss(*self.arguments(), *last)
        return loss, x_hat, hierarchical_loss_backward(self.grad, *self.arguments(), x_hat, *last, need)

    def rows(self):
        """Row b, the codes of row b as a slice of the flattened ones, its cuts."""
        for b in range(len(self.target)):
            k = self.values.shape[-1]
            begin, end = (b * k, b * k + k) if self.offsets is None else self.offsets[b : b + 2].tolist()
            yield b, slice(begin, end), (self.cuts[b] if self.cuts.dim() == 2 else self.cuts).tolist()

    def written_out(self):
        """loss, x̂, gradients in float64; and for each the sum of the sizes of what it adds up."""
        values, weight, target = self.values.double().flatten(), self.weight.double(), self.target.double()
        indices, share = self.indices.flatten(), 1 / max(1, len(target))
        bias = torch.zeros_like(weight[0]) if self.bias is None else self.bias.double()
        zeros = torch.zeros_like
        loss, x_hat = values.new_zeros(2), zeros(target).repeat(2, 1, 1)
        to_values, to_weight, to_target = zeros(values).repeat(2, 1), zeros(weight).repeat(2, 1, 1), zeros(x_hat)
        for b, codes, cuts in self.rows():
            v, latents = values[codes], indices[codes]
            terms = v[:, None] * weight[latents]  # [n, D]
            x_hat[0, b], x_hat[1, b] = bias + terms.sum(0), bias.abs() + terms.abs().sum(0)
            size = x_hat[1, b] + target[b].abs()  # the walk back starts from the whole sum
            for cut, w in zip(cuts, self.weights.double(), strict=True):
                residual = bias + terms[:cut].sum(0) - target[b]
                for i, r in enumerate((residual, size)):
                    loss[i] += share * w * r.square().sum()
                    upstream = 2 * GRAD * share * w * r
                    to_target[i, b] -= upstream
                    rows = weight[latents[:cut]]
                    to_values[i, codes][:cut] += (rows.abs() if i else rows) @ upstream
                    coefficients = v[:cut].abs() if i else v[:cut]
                    to_weight[i].index_add_(0, latents[:cut], coefficients[:, None] * upstream)
        to_bias = -to_target.sum(1)
        to_values = to_values.view(2, *self.values.shape)
        return [(want, size.abs()) for want, size in (loss, x_hat, to_values, to_weight, to_bias, to_target)]

    def check(self):
        loss, x_hat, gradients = self.run()
        most = max([codes.stop - codes.start for _, codes, _ in self.rows()], default=0)
        hot = int(torch.bincount(self.indices.flatten(), minlength=1).max()) if self.indices.numel() else 0
        walk = 2 * most + 8  # roundings of one residual, and of their sum
        # Of S in bfloat16: 2 · 2¹⁴ · 2⁻²⁴ = 2⁻⁹, twice that in the interpreter, which cuts digits off.
        kept = 2 ** (14 if self.weight.is_cuda else 15) if self.weight.dtype == torch.bfloat16 else 0
        width, batch = self.weight.shape[1], len(self.target)
        terms = (2 * walk + 32, most + 1, walk + width, walk + hot + kept, walk + batch, walk)
        names = ("loss", "x_hat", "values", "weight", "bias", "target")
        for name, got, (want, size), count in zip(
            names, (loss, x_hat, *gradients), self.written_out(), terms, strict=True
        ):
            assert_within_bound(name, got, want, size, count)
        assert loss.dtype == torch.float32
        assert [g.dtype for g in gradients] == [t.dtype for t in (self.values, *[self.weight] * 2, self.target)]


KINDS = ("all", "few", "rows")
CASES = [(shape, kind, (i + j) % 2 == 0) for i, shape in enumerate(SHAPES) for j, kind in enumerate(KINDS)]
CASES = [case for case in CASES if case[0][0] < 30 or case[1] == "rows"]  # a second and a half each in the interpreter


@pytest.mark.parametrize(("shape", "cuts", "ragged"), CASES)
def test_value_and_gradients(device, shape, cuts, ragged):
    """Planted: a cut just before a code taken for one beyond it; the prefix without codes left out; S of a code without
    the residual that ends with it; a row of S read by codes beyond the last cut; rows' own cuts read as the first
    row's. All caught."""
    Problem(device, *shape, cuts, ragged=ragged).check()


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("cuts", ["all", "few"])
def test_sixteen_bits(device, cuts, dtype):
    """Planted: S kept in bfloat16 where the weight is float32 or float16; x̂ read where it is rounded. Caught."""
    Problem(device, 13, 11, 130, 40, cuts, dtype).check()


@pytest.mark.parametrize("cuts", ["all", "few"])
def test_several_slices(device, cuts, monkeypatch):
    """D = 300 in float32 as slices of 32 columns, the last one ragged: what they share is added over them. Planted: the
    inner products of one slice too few; caught."""
    monkeypatch.setattr(backward, "BUFFER", 1000)
    problem = Problem(device, 6, 5, 300, 9, cuts)
    assert plan(6, 30, problem.cuts.shape[-1], 9, 300, torch.float32, True).slices == (10, 32, 1)
    problem.check()


@pytest.mark.parametrize("cuts", ["all", "few"])
def test_hot_latents_are_split_and_added_in_order(device, cuts):
    """A latent in every row and one of exactly CHUNK codes, among empty ones."""
    problem = Problem(device, CHUNK + 9, 3, 19, 150, cuts)
    problem.indices[:, 0] = 5
    problem.indices[:, 1:] = torch.randint(6, 149, (CHUNK + 9, 2))
    problem.indices[:CHUNK, 1] = 149
    problem.check()


@pytest.mark.parametrize("wanted", range(16))
def test_only_the_wanted_gradients(device, wanted):
    problem = Problem(device, 5, 4, 23, 17, "few" if wanted % 3 else "all")
    need = [bool(wanted >> i & 1) for i in range(4)]
    for a, b, flag in zip(problem.run()[2], problem.run(need=need)[2], need, strict=True):
        assert torch.equal(a, b) if flag else b.numel() == 0


@pytest.mark.parametrize("cuts", ["all", "few"])
def test_strides_and_a_given_order_change_nothing(device, cuts):
    problem = Problem(device, 9, 4, 21, 15, cuts, bias=False)
    plain = problem.run(latent_order(problem.indices, 15))
    for name in ("values", "indices", "weight", "target"):
        setattr(problem, name, getattr(problem, name).t().contiguous().t())
    assert not problem.weight.is_contiguous()
    odd = problem.run()
    assert all(torch.equal(a, b) for a, b in zip((*plain[:2], *plain[2]), (*odd[:2], *odd[2]), strict=True))
    problem.check()


def test_ten_runs_are_equal_bit_for_bit(device):
    problem = Problem(device, CHUNK // 4, 5, 40, 2)
    first = problem.run()
    for _ in range(1 if device == "cpu" else 9):
        again = problem.run()
        assert all(torch.equal(a, b) for a, b in zip((*first[:2], *first[2]), (*again[:2], *again[2]), strict=True))


def test_a_target_in_float32_beside_weights_in_bfloat16(device):
    """As under autocast."""
    problem = Problem(device, 5, 6, 33, 12, dtype=torch.bfloat16)
    problem.target = torch.randn(5, 33).to(device)
    problem.check()


def test_one_cut_at_all_codes_is_the_squared_error(device):
    """Planted: B for the number of rows in a program; caught here and by others."""
    problem = Problem(device, 17, 3, 20, 12)
    problem.cuts, problem.weights = problem.cuts[-1:], torch.ones(1, device=device)
    loss, x_hat, gradients = problem.run()
    torch.testing.assert_close(loss, (x_hat - problem.target).square().sum(1).mean())
    torch.testing.assert_close(gradients[3], -2 * GRAD / 17 * (x_hat - problem.target))
    problem.check()


def test_nan_stays_in_its_row(device):
    problem = Problem(device, 6, 4, 10, 12)
    problem.values[2, 3] = torch.nan
    loss, x_hat, gradients = problem.run()
    assert loss.isnan()
    for rows in (x_hat, gradients[0], gradients[3]):
        assert rows[2].isnan().all()
        assert not rows[[0, 1, 3, 4, 5]].isnan().any()


def test_the_sums_of_a_slice_are_bounded():
    """In L2 where a few budgets are meant, 128 bytes a code at most beyond BUFFER. Planted: no limit; caught."""
    for dtype in (torch.bfloat16, torch.float32):
        for codes in (32, 64, 128, 512):
            for cuts in (1, 4, 8, codes):
                cut, rows, owned, suffix_rows = plan(8192, 8192 * codes, cuts, 65_536, 2304, dtype, True)
                line = cut.BLOCK_D * dtype.itemsize
                assert owned == (cuts < codes)
                assert suffix_rows * line <= BUFFER or line == 128
                assert suffix_rows * line <= 40e6 or cuts > 8
                assert rows * line == 512 * cut.num_warps
                assert cut.count * cut.BLOCK_D >= 2304
