"""The Triton decoder and its gradients against float64, at awkward shapes, in every storage type."""

import pytest
import torch
from bounds import assert_within_bound
from sparse_codes import SHAPES, indices_with_hot_latent, ragged_offsets

from saekern import reference
from saekern.kernels.decode import L2, decode, slices
from saekern.kernels.decode import plan as decode_plan
from saekern.kernels.decode_backward import decode_backward, decode_row_gradients
from saekern.kernels.latent_order import latent_order
from saekern.kernels.segment_gradients import CHUNK, segment_gradients

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ALL = [True, True, True]


def problem(device, batch, k, width, latents, dtype=torch.float32, ragged=False):
    """values, indices, weight, bias, offsets, upstream gradient."""
    offsets = None
    indices = indices_with_hot_latent(batch, k, latents)
    if ragged:
        offsets = ragged_offsets(batch, k)
        indices = indices.flatten()[: offsets[-1]].contiguous()
        offsets = offsets.to(device)
    values, weight = torch.randn(indices.shape), torch.randn(latents, width)
    bias, upstream = torch.randn(width), torch.randn(batch, width)
    values, weight, bias, upstream = (t.to(device, dtype) for t in (values, weight, bias, upstream))
    return values, indices.to(device), weight, bias, offsets, upstream


def check_gradients(got, grad, values, indices, weight, offsets):
    """grad_values, grad_weight, grad_bias against the reference."""
    exact = [t.double() for t in (grad, values)]
    want = reference.decode_backward(*exact, indices, weight.double(), offsets)
    size = reference.decode_backward(*(t.abs() for t in exact), indices, weight.double().abs(), offsets)
    most = int(torch.bincount(indices.flatten(), minlength=1).max()) if indices.numel() else 0
    for name, g, w, s, terms in zip(
        ("values", "weight", "bias"), got, want, size, (weight.shape[1], most, len(grad)), strict=True
    ):
        assert_within_bound(name, g, w, s, terms)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradients(device, shape, dtype, ragged):
    values, indices, weight, bias, offsets, upstream = problem(device, *shape, dtype=dtype, ragged=ragged)
    out = decode(values, indices, weight, bias, offsets)
    assert out.dtype == dtype
    want = reference.decode(values.double(), indices, weight.double(), bias.double(), offsets)
    size = reference.decode(values.double().abs(), indices, weight.double().abs(), bias.double().abs(), offsets)
    assert_within_bound("out", out, want, size, shape[1] + 1)
    got = decode_backward(upstream, values, indices, weight, offsets, None, None, ALL)
    check_gradients(got, upstream, values, indices, weight, offsets)


def test_several_slices(device):
    """D = 1400 is cut into three slices, the last one ragged; the dots are added over them."""
    assert slices(1400, torch.float32).count == 3
    values, indices, weight, _, offsets, upstream = problem(device, 6, 5, 1400, 9)
    out = decode(values, indices, weight, None, offsets)
    exact = values.double(), indices, weight.double()
    size = reference.decode(exact[0].abs(), indices, exact[2].abs())
    assert_within_bound("out", out, reference.decode(*exact), size, 6)
    got = decode_backward(upstream, values, indices, weight, None, None, None, ALL)
    check_gradients(got, upstream, values, indices, weight, None)


def test_hot_latents_are_split_and_added_in_order(device):
    """A latent in every row and one of exactly CHUNK codes, among empty ones. Planted: the first overflow program left
    out of the sum; the first part's sum in another's place. Both caught."""
    batch = 2 * CHUNK + 3
    values, indices, weight, _, _, upstream = problem(device, batch, 4, 19, 700)
    indices[:, 1:] = torch.randint(6, 699, (batch, 3))
    indices[:, 0], indices[:CHUNK, 1] = 5, 699
    got = decode_backward(upstream, values, indices, weight, None, None, None, ALL)
    check_gradients(got, upstream, values, indices, weight, None)
    empty = torch.bincount(indices.flatten(), minlength=700) == 0
    assert empty.any()
    assert not got[1][empty].any()


@pytest.mark.parametrize("ragged", [False, True])
def test_row_gradients_are_the_rows_of_the_dense_gradient(device, ragged):
    values, indices, weight, _, offsets, upstream = problem(device, CHUNK + 7, 3, 33, 500, ragged=ragged)
    dense = decode_backward(upstream, values, indices, weight, offsets, None, None, ALL)
    latents, rows, grad_values = decode_row_gradients(upstream, values, indices, weight, offsets, None, None)
    assert torch.equal(latents, indices.unique())
    assert torch.equal(rows, dense[1][latents])
    assert torch.equal(grad_values, dense[0])


@pytest.mark.parametrize("wanted", range(8))
def test_only_the_wanted_gradients(device, wanted):
    values, indices, weight, _, _, upstream = problem(device, 12, 4, 23, 17)
    need = [bool(wanted >> i & 1) for i in range(3)]
    full = decode_backward(upstream, values, indices, weight, None, None, None, ALL)
    some = decode_backward(upstream, values, indices, weight, None, None, None, need)
    for a, b, flag in zip(full, some, need, strict=True):
        assert torch.equal(a, b) if flag else b.numel() == 0


def test_strides_and_a_given_order_change_nothing(device):
    values, indices, weight, bias, _, upstream = problem(device, 9, 4, 21, 15)
    entries, segments = latent_order(indices, 15)
    plain = decode_backward(upstream, values, indices, weight, None, entries, segments, ALL)
    odd = [t.t().contiguous().t() for t in (upstream, values, indices, weight)]
    assert not odd[3].is_contiguous()
    for a, b in zip(plain, decode_backward(*odd, None, None, None, ALL), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(decode(*odd[1:], bias, None), decode(values, indices, weight, bias, None))


def test_ten_runs_are_equal_bit_for_bit(device):
    values, indices, weight, _, _, upstream = problem(device, 2 * CHUNK, 3, 40, 30)
    first = decode_backward(upstream, values, indices, weight, None, None, None, ALL)
    for _ in range(2 if device == "cpu" else 10):
        again = decode_backward(upstream, values, indices, weight, None, None, None, ALL)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_offsets_beyond_2_to_the_31(device):
    """The last row of a weight with 2^31 + 64 elements. Its memory is never touched but there."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        weight = torch.empty(2**25 + 1, 64, dtype=torch.bfloat16, device=device)
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = True
    weight[-1] = torch.randn(64)
    values, indices = torch.full((1, 1), 2.0, dtype=torch.bfloat16), torch.full((1, 1), 2**25)
    out = decode(values.to(device), indices.to(device), weight, None, None)
    assert torch.equal(out[0], 2 * weight[-1])


@pytest.mark.parametrize("latents", [1, 7, 300])
def test_latent_order_is_the_stable_sort(device, latents):
    indices = torch.randint(latents, (37, 3)).to(device)
    for got, want in zip(latent_order(indices, latents), reference.latent_order(indices, latents), strict=True):
        assert torch.equal(got, want)
        assert got.dtype == torch.int32


@pytest.mark.parametrize("before", [0, 1, CHUNK - 1])
def test_every_code_is_walked_once(device, before):
    """Segments around multiples of CHUNK, at every kind of beginning; with coefficients 1 the sums count the codes.

    Planted: an overflow program less; parts from CHUNK + 1 codes on; the fold's window one wider or narrower; the lead
    cut at CHUNK codes. All caught."""
    lengths = [before, CHUNK, CHUNK + 1, 0, 2 * CHUNK - 1, 2 * CHUNK, 1, 2 * CHUNK + 1, 4 * CHUNK, CHUNK - 1]
    lengths = torch.tensor([*lengths, 3 * CHUNK + 1 if before else 3 * CHUNK])
    indices = torch.arange(len(lengths)).repeat_interleave(lengths)[:, None].to(device)
    ones, rows = torch.ones(len(indices), 1, device=device), torch.ones(len(indices), 3, device=device)
    sums, row_sums = torch.full((len(lengths),), -1.0, device=device), torch.empty(len(lengths), 3, device=device)
    entries, segments = latent_order(indices, len(lengths))
    segment_gradients(
        entries, segments, indices, rows, codes_per_row=1, coefficients=ones, row_sums=row_sums, sums=sums
    )
    assert sums.tolist() == lengths.tolist()
    assert torch.equal(row_sums, sums[:, None].expand(-1, 3))


def test_slices_stay_in_l2():
    """Of the dictionary for the decoder, of the upstream rows for its gradients; as wide as that allows."""
    for dtype in (torch.bfloat16, torch.float32):
        for width in (768, 1100, 2304, 4096):
            for latents in (16384, 65536, 131072):
                codes = 8192 * 64 * (8 + dtype.itemsize)
                cut = decode_plan(8192, latents, width, dtype, codes).slices
                fits = (latents + 8192) * cut.BLOCK_D * dtype.itemsize + codes <= L2
                assert fits or cut.BLOCK_D * dtype.itemsize == 128
                assert cut.count * cut.BLOCK_D >= width > (cut.count - 1) * cut.BLOCK_D
    assert slices(2304, torch.bfloat16).BLOCK_D == 512
    assert slices(768, torch.bfloat16).BLOCK_D == 256, "512 columns would leave a third of the lanes idle"
    assert slices(19, torch.bfloat16) == (1, 32, 1)
