"""Dense tensors that are made when they are read."""

import copy
import io

import pytest
import torch

from saekern import ops
from saekern.acceleration.lazy import Codes, LazyTensor, lazy_codes


def codes(requires_grad=True):
    """3 rows over 5 latents, one value 0."""
    values = torch.tensor([[3.0, 1.0], [2.0, 0.0], [4.0, 5.0]], requires_grad=requires_grad)
    return Codes(values, torch.tensor([[4, 0], [2, 1], [0, 2]]), 5)


def ragged(requires_grad=True):
    values = torch.tensor([3.0, 1.0, 2.0, 5.0], requires_grad=requires_grad)
    return Codes(values, torch.tensor([4, 0, 2, 1]), 5, torch.tensor([0, 2, 2, 4]))


BOTH = pytest.mark.parametrize("made", [codes, ragged])


def plain(made):
    """The same without laziness."""
    these = made(requires_grad=False)
    dense = torch.zeros(3, 5)
    for row, latent, value in zip(these.row_index(), these.indices.flatten(), these.values.flatten(), strict=True):
        dense[row, latent] = value
    return dense


@BOTH
@pytest.mark.parametrize(
    "read",
    [
        lambda z: z.bool().float().sum(-2).bool(),
        lambda z: z.bool().float().sum(0),
        lambda z: z.bool().float().sum(-1).to_dense().mean(),
        lambda z: (z > 0).sum(),
        lambda z: (z > 0).sum(0),
        lambda z: (z != 0).sum(-1),
        lambda z: (z != 0).float().sum(dim=-1),
        lambda z: torch.sum(z.abs(), dim=1),
        lambda z: z.detach().to(torch.float64).sum((0,)),
        lambda z: (2 * z).mean(),
        lambda z: (z.relu() * torch.arange(5.0)).mean(1),
        lambda z: torch.mean((torch.abs(z) >= 1e-6).float(), 0),
        lambda z: (z > 0).any(dim=0),
        lambda z: z.norm(p=1, dim=-1),
        lambda z: (z**4).sum(1) + z.square().sum(1),
    ],
)
def test_what_training_loops_read_is_answered_from_the_codes(made, read):
    """Planted: `sum(0)` summed over rows' codes; the sums of `bool` in bool; caught."""
    lazy = lazy_codes(made())
    got, want = read(lazy), read(plain(made))
    assert type(got) is torch.Tensor
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert lazy.made is None


@BOTH
@pytest.mark.parametrize(
    "read",
    [
        lambda z: z @ torch.arange(10.0).view(5, 2),
        lambda z: z[:, 2],
        lambda z: z > -1,
        lambda z: z.sum(0, keepdim=True),
        lambda z: z.max(1).values,
        lambda z: torch.cat([z, z]),
        lambda z: torch.from_numpy(z.detach().numpy()),
        lambda z: torch.tensor(z.tolist()),
        lambda z: z / 2,
        lambda z: z >= 0,
        lambda z: z.norm(dim=1),
        lambda z: z**0.5,
        lambda z: torch.any(z, dim=0),
        lambda z: torch.nn.functional.linear(z, torch.ones(1, 5)),
    ],
)
def test_everything_else_reads_the_dense_tensor(made, read):
    got, want = read(lazy_codes(made())), read(plain(made))
    assert type(got) is torch.Tensor
    assert torch.equal(got, want)


@BOTH
def test_metadata_needs_no_dense_tensor(made):
    lazy = lazy_codes(made())
    assert (lazy.shape, lazy.dtype, lazy.device.type, lazy.ndim, len(lazy)) == ((3, 5), torch.float32, "cpu", 2, 3)
    assert (lazy.size(-1), lazy.dim(), lazy.numel(), lazy.is_sparse, lazy.requires_grad) == (5, 2, 15, False, True)
    assert isinstance(lazy, torch.Tensor)
    assert lazy.made is None


@BOTH
def test_gradients_reach_the_values(made):
    """Planted: `dense()` of detached values; caught."""
    these = made()
    (lazy_codes(these) ** 2).sum().backward()
    torch.testing.assert_close(these.values.grad, 2 * these.values.detach())
    assert torch.equal(
        made().values, lazy_codes(made())[made().row_index(), made().indices.flatten()].view_as(made().values)
    )


def test_sparse_answers_have_gradients():
    these = codes()
    (lazy_codes(these).sum(0) * torch.arange(5.0)).sum().backward()
    assert torch.equal(these.values.grad, these.indices.float())


def test_what_is_written_stays():
    """Planted: `dense()` made anew at each read; `current_codes` without its look at the version; caught."""
    lazy = lazy_codes(codes(requires_grad=False))
    assert lazy.current_codes() is lazy.codes
    assert lazy[0, 4] == 3
    assert lazy.current_codes() is lazy.codes
    lazy[:, 4] = 0
    assert lazy.current_codes() is None
    assert lazy.sum() == 12
    assert lazy.bool().float().sum(0)[4] == 0


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z * z

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


def test_a_gradient_that_would_be_lost_is_an_error():
    """An autograd.Function sees its arguments past __torch_function__. Planted: no hook; the gradient vanished."""
    out = Square.apply(lazy_codes(codes()))
    assert out[0, 4] == 9
    with pytest.raises(RuntimeError, match="past torch's own functions"):
        out.sum().backward()
    Square.apply(lazy_codes(these := codes()) + 0).sum().backward()
    assert torch.equal(these.values.grad, 2 * these.values.detach())


def test_more_leading_sizes():
    lazy = lazy_codes(Codes(torch.ones(6, 1), torch.arange(6)[:, None] % 4, 4), (2, 3, 4))
    assert lazy.shape == (2, 3, 4)
    assert torch.equal(lazy.sum(0), lazy.dense().sum(0))


def test_copies_and_files_hold_plain_tensors():
    lazy = lazy_codes(codes(requires_grad=False))
    file = io.BytesIO()
    torch.save(lazy, file)
    file.seek(0)
    for other in (copy.deepcopy(lazy), torch.load(file)):
        assert not isinstance(other, LazyTensor)
        assert torch.equal(other, plain(codes))


def test_codes_sums_match_the_decoder():
    these = ragged()
    ones = ops.decode(these.values.detach(), these.indices, torch.ones(5, 1), offsets=these.offsets)
    assert torch.equal(these.row_sums(these.values), ones[:, 0])
