"""The Kronecker encoder: pre-latents u = ⟨x − pre_bias, weight_p⟩ + bias_p and v, a cache-sized chunk of heads at a
time, and, while the chunk is in L2, the k largest products u·v of each row (kron_select.py). No [B, F] matrix.

Pre-latents come from one matrix product a chunk, whose weights stand side by side for it (two products of a third and
two thirds of a chunk would leave multiprocessors idle in each). bfloat16 and float16: float32 sums, and the pre-bias
as in topk_encode.py, by a shift. float32: `topk_screen.exact_scores`, in one fixed order, no TF32. Its bound by
bfloat16 roundings would not pay: scoring what it leaves again means M + N rows of the weight a head for about k heads a
row, 58 GB at D = 2304, (M, N) = (4, 8), k = 64, B = 8192, as long as the product.

k or k_aux above LARGEST_K: the products of a few rows at a time, and a stable sort. Slower, as exact.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from saekern.kernels import kron_select, topk_screen
from saekern.kernels.latent_order import latent_order
from saekern.kernels.streaming_select import LARGEST_K
from saekern.kernels.topk_encode import DENSE_SCORES, TILE, TILES, multiply

ROWS = 8192  # of x in flight at most: every block of rows packs the weights anew, every chunk of heads reads x
WORDS = 2**23  # int32 words of candidate lists: 33.6 MB, which is k ≤ 128 and 8192 rows
ALIGN = 16  # of what the kernels take as a stride, so that they load 128 bits


class Plan(NamedTuple):
    rows: int  # of x in flight
    heads: int  # a chunk
    whole: bool  # one chunk: two products straight from the weights
    q_at: int  # where the v's of a chunk begin
    columns: int  # of a chunk
    row_blocks: int
    chunks: int


def plan(batch: int, heads: int, m: int, n: int, k: int, k_aux: int, major: int = 9) -> Plan:
    """`major`: the device's compute capability."""
    slots = kron_select.capacity(k) + (kron_select.capacity(k_aux) if k_aux else 0)
    height, width = TILE
    tiles = TILES.get(major, TILES[9])
    # A head that fills more than the tiles by itself takes fewer rows.
    most = min(ROWS, WORDS // (kron_select.PLANES * slots), max(1, tiles * height * width // _padded(1, m, n)[1]))
    blocks = triton.cdiv(batch, most)
    rows = min(batch, most, triton.cdiv(triton.cdiv(batch, max(blocks, 1)), height) * height)
    columns = max(1, tiles // triton.cdiv(max(rows, 1), height)) * width
    chunk = min(heads, max(1, columns // (m + n)))
    while chunk > 1 and chunk < heads and _padded(chunk, m, n)[1] > columns:
        chunk -= 1
    q_at, columns = _padded(chunk, m, n)
    return Plan(rows, chunk, chunk == heads, q_at, columns, triton.cdiv(batch, max(rows, 1)), triton.cdiv(heads, chunk))


def _padded(heads: int, m: int, n: int) -> tuple[int, int]:
    q_at = triton.cdiv(heads * m, ALIGN) * ALIGN
    return q_at, q_at + triton.cdiv(heads * n, ALIGN) * ALIGN


class Selection(NamedTuple):
    """One of the two top-k sets, and the lists it is made from."""

    k: int
    list: Tensor  # [rows, 4, capacity] int32
    state: Tensor  # [rows, 2] int32
    allowed: Tensor | None  # [F] uint8
    allowed_heads: Tensor | None  # [H] uint8
    padding: Tensor | None  # [k] int32
    outs: tuple[Tensor, ...]  # values, indices, u, v


class Weights(NamedTuple):
    p: Tensor  # [H·M, D]
    q: Tensor  # [H·N, D]
    p_shift: Tensor | None  # [H·M] float32: what a product lacks
    q_shift: Tensor | None
    pre_bias: Tensor | None  # where the product itself subtracts it
    m: int
    n: int
    heads: int


def kron_encode(
    x: Tensor,
    weight_p: Tensor,
    weight_q: Tensor,
    bias_p: Tensor | None,
    bias_q: Tensor | None,
    k: int,
    pre_bias: Tensor | None,
    activation: str,
    eps: float,
    dead: Tensor | None,
    k_aux: int,
    order: bool,
) -> tuple[Tensor, ...]:
    """values, indices, u, v [B, k]; the same of the dead latents [B, k_aux]; entries, segments: the codes' order by
    latent, empty where `order` says no. u and v are float32."""
    batch, latents = x.shape[0], weight_p.shape[0] * weight_p.shape[1] * weight_q.shape[1]
    main, aux = (_outputs(x, count) for count in (k, k_aux))
    if batch:
        with torch.cuda.device_of(x):
            weights = _weights(weight_p, weight_q, bias_p, bias_q, pre_bias)
            allowed = None if dead is None or not k_aux else dead.contiguous().view(torch.uint8)
            run = _sorted if max(k, k_aux) > LARGEST_K else _streamed
            run(x.contiguous(), weights, activation, eps, allowed, main, aux)
    if order:
        return *main, *aux, *latent_order(main[1], latents)
    empty = torch.empty(0, dtype=torch.int32, device=x.device)
    return *main, *aux, empty, empty.clone()


def _outputs(x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = (x.shape[0], k)
    u, v = (torch.empty(shape, device=x.device) for _ in range(2))
    return x.new_empty(shape), torch.empty(shape, dtype=torch.int64, device=x.device), u, v


def _weights(weight_p, weight_q, bias_p, bias_q, pre_bias) -> Weights:
    (heads, m, width), n = weight_p.shape, weight_q.shape[1]
    p, q = (weight.contiguous().view(heads * size, width) for weight, size in ((weight_p, m), (weight_q, n)))
    biases = [None if bias is None else bias.contiguous().view(-1) for bias in (bias_p, bias_q)]
    pre_bias = None if pre_bias is None else pre_bias.contiguous()
    if p.dtype != torch.float32 and pre_bias is not None:
        biases = [topk_screen.shifts(pre_bias, w, bias) for w, bias in zip((p, q), biases, strict=True)]
        pre_bias = None
    p_shift, q_shift = (None if bias is None else bias.float() for bias in biases)
    return Weights(p, q, p_shift, q_shift, pre_bias, m, n, heads)


def _multiply(rows: Tensor, weight: Tensor, pre_bias: Tensor | None, out: Tensor) -> None:
    if rows.dtype == torch.float32:
        topk_screen.exact_scores(rows, pre_bias, weight, None, out)
    else:
        multiply(rows, weight, out)


def _streamed(x: Tensor, w: Weights, activation: str, eps: float, allowed: Tensor | None, main, aux) -> None:
    (batch, width), device = x.shape, x.device
    k, k_aux = main[0].shape[1], aux[0].shape[1]
    major = torch.cuda.get_device_capability(device)[0] if x.is_cuda else 9
    chosen = plan(batch, w.heads, w.m, w.n, k, k_aux, major)
    selections = [_selection(chosen.rows, k, None, None, None, main)]
    if allowed is not None:
        heads = allowed.view(w.heads, -1).amax(1)
        padding = torch.sort(allowed, stable=True).indices[:k_aux].to(torch.int32)  # live latents come first
        selections.append(_selection(chosen.rows, k_aux, allowed, heads, padding, aux))
    scratch = torch.empty(chosen.rows, kron_select.blocks(w.m, w.n)[2], dtype=torch.int32, device=device)
    scores = torch.empty(chosen.rows * chosen.columns, device=device)
    packed = None if chosen.whole else torch.empty(chosen.columns, width, dtype=x.dtype, device=device)
    pad = None if chosen.whole else torch.zeros(ALIGN - 1, width, dtype=x.dtype, device=device)
    for row in range(0, batch, chosen.rows):
        rows = x[row : row + chosen.rows]
        for first in range(0, w.heads, chosen.heads):
            heads = min(chosen.heads, w.heads - first)
            p, q = _prelatents(rows, w, chosen, first, heads, scores, packed, pad)
            p_shift = None if w.p_shift is None else w.p_shift[first * w.m :]
            q_shift = None if w.q_shift is None else w.q_shift[first * w.n :]
            for s in selections:
                kron_select.select(p, q, p_shift, q_shift, s, scratch, w.m, w.n, first, heads, activation == "product")
        for s in selections:
            kron_select.finish(s, row, rows.shape[0], eps, activation == "mand", activation == "product")


def _prelatents(rows: Tensor, w: Weights, chosen: Plan, first: int, heads: int, scores: Tensor, packed, pad) -> tuple:
    """u [rows, heads · M] and v without their shifts, in `scores`, every row of them from a multiple of ALIGN on."""
    count = rows.shape[0]
    p, q = w.p[first * w.m : (first + heads) * w.m], w.q[first * w.n : (first + heads) * w.n]
    if packed is None:
        p_out = scores[: count * p.shape[0]].view(count, -1)
        q_out = scores[chosen.rows * chosen.q_at :][: count * q.shape[0]].view(count, -1)
        _multiply(rows, p, w.pre_bias, p_out)
        _multiply(rows, q, w.pre_bias, q_out)
        return p_out, q_out
    q_at, columns = _padded(heads, w.m, w.n)
    both = packed[:columns]
    torch.cat([p, pad[: q_at - p.shape[0]], q, pad[: columns - q_at - q.shape[0]]], out=both)
    out = scores[: count * columns].view(count, -1)
    _multiply(rows, both, w.pre_bias, out)
    return out, out[:, q_at:]


def _selection(rows: int, k: int, allowed, allowed_heads, padding, outs: tuple[Tensor, ...]) -> Selection:
    device = outs[0].device
    words = torch.empty(rows, kron_select.PLANES, kron_select.capacity(k), dtype=torch.int32, device=device)
    state = torch.empty(rows, 2, dtype=torch.int32, device=device)
    return Selection(k, words, state, allowed, allowed_heads, padding, outs)


def _sorted(x: Tensor, w: Weights, activation: str, eps: float, allowed: Tensor | None, main, aux) -> None:
    count = max(1, min(len(x), DENSE_SCORES // (w.heads * w.m * w.n)))
    for row in range(0, len(x), count):
        rows = x[row : row + count]
        factors = []
        for weight, shift, size in ((w.p, w.p_shift, w.m), (w.q, w.q_shift, w.n)):
            out = torch.empty(len(rows), len(weight), device=x.device)
            _multiply(rows, weight, w.pre_bias, out)
            factors.append((out if shift is None else out + shift).view(len(rows), w.heads, size))
        u, v = factors
        score = (u[..., :, None] * v[..., None, :]).flatten(1)
        if activation != "product":
            off = (u[..., :, None] <= 0) & ~v.isnan()[..., None, :] | (v[..., None, :] <= 0) & ~u.isnan()[..., :, None]
            score.masked_fill_(off.flatten(1), 0)
        for outs, some in ((main, None), (aux, allowed)):
            if some is not None:
                score = score.masked_fill(some == 0, -torch.inf)
            if outs is main or some is not None:
                _take(score, u, v, activation, eps, some, [out[row : row + count] for out in outs])


def _take(score: Tensor, u: Tensor, v: Tensor, activation: str, eps: float, allowed: Tensor | None, outs) -> None:
    k, (m, n) = outs[0].shape[1], (u.shape[2], v.shape[2])
    best, latent = torch.sort(score, dim=1, descending=True, stable=True)
    best, latent = best[:, :k], latent[:, :k]
    head, pair = latent // (m * n), latent % (m * n)
    u = u.flatten(1).gather(1, head * m + pair // n)
    v = v.flatten(1).gather(1, head * n + pair % n)
    value = {"mand": lambda: (best + eps).sqrt(), "relu": lambda: best, "product": best.relu}[activation]()
    if allowed is not None:
        value, u, v = (torch.where(allowed[latent] != 0, t, 0) for t in (value, u, v))
    for out, got in zip(outs, (value, latent, u, v), strict=True):
        out.copy_(got)
