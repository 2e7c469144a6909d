"""The Triton all-pairs cosines against float64, and the bound that lets most of them be looked at in float16 only."""

import pytest
import torch
from bounds import assert_within_bound

from saekern import ops, reference
from saekern.kernels import cosine_screen as screening
from saekern.kernels import nearest as kernel

ONE_PAIR = torch.zeros(1, 2, dtype=torch.int32)


def prepared(rows, device):
    return screening.prepare(rows[None].to(device))


def check(got, a, b):
    """Values within float32's rounding of float64's best; a partner that is clearly best is the one named."""
    a64, b64 = a.double(), b.double()
    want = reference.nearest(a64, b64)
    table = reference.cosines(a64, b64)
    for side, matrix in ((0, table), (2, table.T)):
        cosine, index = got[side].cpu(), got[side + 1].cpu()
        assert cosine.dtype == torch.float32
        assert_within_bound("cosine", cosine, want[side], 2.0, a.shape[1] + 4)
        finite = want[side].isfinite()
        chosen = matrix.gather(1, index[:, None])[:, 0]
        assert_within_bound("cosine of the index", chosen[finite], want[side][finite], 2.0, a.shape[1] + 4)
        two = matrix.topk(min(2, matrix.shape[1]), dim=1).values
        clear = ~finite | (two[:, 0] - two[:, -1] > 1e-5)
        assert torch.equal(index[clear], want[side + 1][clear])


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 5), (23, 1, 3), (37, 53, 31), (7, 130, 71), (260, 3, 130)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_directions(device, shape, dtype):
    """Odd and prime sizes, more than a tile of rows on either side; rows of very different norms. Planted: rows of the
    group's upper half left out; partners not sought beyond the leading group's 8; columns' maxima stored by rows'
    groups. All caught."""
    fa, fb, width = shape
    a = (torch.randn(fa, width) * 10 ** torch.empty(fa, 1).uniform_(-12, 12)).to(dtype)
    b = torch.randn(fb, width).to(dtype)
    check(kernel.nearest(a.to(device), b.to(device)), a, b)
