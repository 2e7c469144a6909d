"""Bytes and operations of each Triton kernel, from the grid, shapes and constants that its launcher used.

One formula a kernel in KERNELS, under the name of the `@triton.jit` function. A kernel without one stops the model: it
is never guessed. What the formulas assume is in ASSUMPTIONS (kernel_costs.py), by the names they use.
"""

import math
from collections.abc import Callable

from torch import Tensor

from saekern.bench.kernel_costs import Cost, Roofs, size, torch_operation
from saekern.bench.recorder import Step

HOT = 8  # latents that fire on 30 % of the rows
SECTOR = 32  # bytes: what one scattered 2- or 4-byte access moves between L2 and an SM
L1, WARPS = 200e3, 16  # bytes and warps an SM; a warp of 128 registers a thread takes a sixteenth
SCREENED = 2  # candidates a winner that the bound of a screened score leaves, about


def gathered(rows: Tensor, codes: int, block: int, roofs: Roofs) -> tuple[float, float]:
    """Bytes from memory and hits in L2 when `codes` codes each read a row, slice by slice. ASSUMPTIONS["slice"]."""
    count, width = rows.shape
    row = float(width * rows.itemsize)
    resident = count * min(block, width) * rows.itemsize <= roofs.l2_usable
    misses = min(count, codes) if resident else codes
    return row * misses, row * (codes - misses)


def decode(step: Step, roofs: Roofs) -> Cost:
    values, weight, slices = step["values"], step["weight"], step.grid[1]
    memory, l2 = gathered(weight, values.numel(), step["BLOCK_D"], roofs)
    codes, part = size(values, step["indices"]), weight.shape[0] * step["BLOCK_D"] * weight.itemsize
    again = 1 if part + codes + size(step["out"]) / slices <= roofs.l2_usable else slices
    once = size(step["bias"], step["offsets"])
    l2 += slices * codes
    return Cost(memory + again * codes + once, size(step["out"]), l2, vector=2.0 * values.numel() * weight.shape[1])


def _split(codes: int, rows: int, chunk: int) -> int:
    """Chunks of the hot latents, each of which leaves one float32 row. ASSUMPTIONS["hot"]."""
    return min(HOT * math.ceil(0.3 * rows / chunk), codes // chunk)


def segments(step: Step, roofs: Roofs) -> Cost:
    entries, rows, slices = step["entries"], step["rows"], step.grid[1]
    codes, (batch, width) = step["nnz"], rows.shape
    memory, l2 = gathered(rows, codes, step["BLOCK_D"], roofs)
    index = slices * (size(step["segments"], entries, step["positions"]) + 3.0 * SECTOR * step["overflow"])
    table = size(step["coefficients"], step["row_table"])  # picked one by one, from L2
    picked = [t for t in (step["coefficients"], step["row_table"], step["dots"]) if t is not None]
    read = memory + index + table + size(step["weight"], step["shift"])
    partials = 4.0 * width * _split(codes, batch, step["CHUNK"]) if step["row_sums"] is not None else 0.0
    written = size(step["row_sums"], step["sums"], step["dots"]) + partials
    scattered = slices * codes * SECTOR * len(picked) if entries is not None else 0.0  # else in order
    products = (step["dots"] is not None) + (step["row_sums"] is not None)
    return Cost(read, written, l2 + scattered, vector=2.0 * codes * width * products)


def steps(step: Step, roofs: Roofs) -> Cost:
    read, written = size(step["cuts"], step["weights"], step["offsets"]), ("steps", "bare", "owners", "ends")
    codes = math.ceil(step["J"] / step["CUTS"]) * step["CUTS"] * step["steps"].numel()
    return Cost(read, size(*(step[name] for name in written)), vector=8.0 * codes)


def prefixes(step: Step, roofs: Roofs) -> Cost:
    """As `decode`, with the target and a step for each code."""
    base, codes = decode(step, roofs), step["values"].numel()
    read = base.read + step.grid[1] * size(step["steps"], step["bare"]) + size(step["target"])
    vector = 5.0 * codes * step["weight"].shape[1]
    return base._replace(read=read, written=base.written + size(step["losses"]), vector=vector)


def suffixes(step: Step, roofs: Roofs) -> Cost:
    """One slice: ASSUMPTIONS["slice"] and ["second walk"]; S goes to memory, and each slice reads the codes again."""
    weight, codes = step["weight"], step["values"].numel()
    memory, l2 = gathered(weight, codes, step["BLOCK_D"], roofs)
    if step["estimate"] is None:
        resident = WARPS * 512.0 * codes / step["B"]  # bytes of an SM's rows: 512 a code and warp
        l2 += max(0.0, 1 - L1 / resident) * codes * weight.shape[1] * weight.itemsize
    rows = ("bias", "target", "estimate", "bare", "values", "indices", "offsets", "steps", "ends", "dots")
    written = size(*(step[name] for name in ("new_dots", "suffixes", "grad_target", "bias_partials")))
    again = 0.0 if step["estimate"] is not None else size(step["values"], step["indices"])
    work = 10.0 if step["estimate"] is not None else 13.0
    return Cost(
        memory + size(*(step[name] for name in rows)), written, l2 + again, vector=work * codes * weight.shape[1]
    )


def fold(step: Step, roofs: Roofs) -> Cost:
    overflow, slices = step.grid
    chunks = min(HOT * 20, overflow)
    width = step["D"] if step["row_sums"] is not None else 1
    row = step["row_sums"].itemsize if step["row_sums"] is not None else 4
    index = slices * overflow * 3.0 * SECTOR
    return Cost(index + 4.0 * width * chunks, float(row * width * HOT), vector=float(width * chunks))


def order(step: Step, roofs: Roofs) -> Cost:
    """The upper halvings of the bisections, 1024 places, stay in L1; each of the others is one access to L2."""
    lower = max(0, step["halvings"] - 10)
    read, l2 = size(step["latents"], step["positions"]), step["segments"].numel() * lower * SECTOR
    return Cost(read, size(step["entries"], step["segments"]), float(l2))


def weighted_row_sum(step: Step, roofs: Roofs) -> Cost:
    rows, slices = step["rows"], step.grid[1]
    read = size(rows) + slices * size(step["coefficients"])
    return Cost(read, size(step["partials"]), vector=2.0 * rows.numel())


def streamed(written: tuple[str, ...], updated: tuple[str, ...] = (), work: int = 8) -> Callable[[Step, Roofs], Cost]:
    """A kernel that reads every tensor argument once, in order, except `written`; `updated` are written as well. Those
    that are None cost nothing."""

    def cost(step: Step, roofs: Roofs) -> Cost:
        tensors = {name: value for name, value in step.arguments.items() if isinstance(value, Tensor)}
        read = size(*(t for name, t in tensors.items() if name not in written))
        wrote = size(*(step[name] for name in (*written, *updated)))
        return Cost(read, wrote, vector=float(work * max(t.numel() for t in tensors.values())))

    return cost


def select(step: Step, roofs: Roofs) -> Cost:
    """ASSUMPTIONS["scores"], ["survivors"], ["shift"]."""
    scores, k, first = step["scores"], step["K"], step["first"]
    rows, columns = scores.shape
    resident = scores.nbytes <= roofs.l2_usable
    fresh = min(columns, k if first == 0 else k * columns / first)
    lists = [step["list"], *(t for name, t in step.arguments.items() if name == "aux_list" and t is not None)]
    kept = rows * fresh * 4.0 * step["PLANES"] * len(lists)
    memory = 0.0 if resident else size(scores)
    return Cost(memory + rows * 8.0, kept + rows * 8.0, size(scores) - memory, vector=4.0 * scores.numel())


def score_maxima(step: Step, roofs: Roofs) -> Cost:
    """All scores of a block of rows, to memory; the weight passes once a band of tile rows where it does not stay."""
    n, width, latents = step["n"], step["D"], step["F"]
    weight = step["weight"].itemsize * float(latents * width)
    bands = 1 if weight <= roofs.l2_usable else math.ceil(n / step["ROWS"] / step["BAND"])
    read = step["x"].itemsize * float(n * width) + bands * weight + size(step["shift"])
    written = n * step["stride"] * (4.0 + 4.0 / step["GROUP"])
    return Cost(read, written, matrix=2.0 * n * latents * width / roofs.triton, vector=2.0 * n * latents)


def group_select(step: Step, roofs: Roofs) -> Cost:
    """ASSUMPTIONS["groups of scores"]."""
    rows, groups = step.grid[0], step["stride"] // step["GROUP"]
    picked = 1.15 * rows * step["K"] * step["GROUP"] * 4.0
    return Cost(rows * groups * 4.0 + picked, rows * (groups * 4.0 + step["K"] * 8.0), vector=34.0 * rows * groups)


def kron_select(step: Step, roofs: Roofs) -> Cost:
    """ASSUMPTIONS["scores"], ["shift"], ["heads"]: all pre-latents of the chunk once, those of expanded heads again."""
    k, first, heads, m, n = (step[name] for name in ("K", "first", "heads", "M", "N"))
    rows = step.grid[0]
    read = 4.0 * rows * heads * (m + n)
    resident = 4.0 * rows * step["p_stride"] <= roofs.l2_usable
    expanded = rows * min(heads, 1.3 * k if first == 0 else k * heads / first)
    fresh = rows * min(heads * m * n, k * 1.3 if first == 0 else k * heads / first)
    kept, memory = fresh * 4.0 * step["PLANES"], 0.0 if resident else read
    again = expanded * (4.0 * (m + n) + 4.0)
    vector = rows * heads * (m + n + 40.0) + expanded * m * n * 20.0
    return Cost(memory + rows * 8.0, kept + rows * 8.0, read - memory + again, vector=vector)


def kron_finish(step: Step, roofs: Roofs) -> Cost:
    rows, k = step.grid[0], step["K"]
    written = rows * k * (step["values"].itemsize + 16.0)
    return Cost(rows * k * 16.0, written, vector=64.0 * rows * step["CAPACITY"])


def finish(step: Step, roofs: Roofs) -> Cost:
    rows, k, values = step.grid[0], step["K"], step["values"]
    return Cost(rows * k * 8.0, rows * k * (values.itemsize + 8.0), vector=64.0 * rows * step["CAPACITY"])


def rescore(step: Step, roofs: Roofs) -> Cost:
    """ASSUMPTIONS["screened"]: each candidate reads its float32 row of the weight, from memory."""
    rows, width, candidates = step.grid[0], step["D"], step.grid[0] * step["K"] * SCREENED
    return Cost(size(step["x"][:rows]) + 4.0 * candidates * width, 4.0 * candidates, vector=2.0 * candidates * width)


def dense_scores(step: Step, roofs: Roofs) -> Cost:
    """The weight passes once a tile of rows where it does not stay in the cache."""
    n, width, latents = step["n"], step["D"], step["F"]
    weight = size(step["weight"])
    passes = 1 if weight <= roofs.l2_usable else step.grid[1]
    return Cost(size(step["x"]) + passes * weight, 4.0 * n * latents, vector=2.0 * n * width * latents)


def screen(step: Step, roofs: Roofs) -> Cost:
    """ASSUMPTIONS["operands"]; b passes through the cache once a band of tile rows where it does not stay there."""
    pairs, depth = step["pairs"].shape[0], step["W"]
    a, b = 2.0 * step["Fa"] * depth, 2.0 * step["Fb"] * depth
    bands = 1 if b <= roofs.l2_usable else math.ceil(step["Fa"] / step["TILE_A"] / step["BAND"])
    work = 2.0 * pairs * step["Fa"] * step["Fb"] * depth
    return Cost(
        pairs * (a + bands * b), size(step["a_tops"], step["b_tops"]), matrix=work / roofs.triton, vector=work / depth
    )


def pick(step: Step, roofs: Roofs) -> Cost:
    """ASSUMPTIONS["groups"]."""
    rows, width, depth = step["cosines"].numel(), step["D"], step["W"]
    own = rows * (4.0 * width + 2.0 * depth)
    groups, partners = 1.1 * rows * 8 * 2.0 * depth, 1.1 * rows * 4.0 * width
    stay = 2.0 * step["count"] * depth <= roofs.l2_usable
    memory = size(step["tops"]) + own + partners + (0.0 if stay else groups)
    work = 2.0 * 1.1 * rows * (8 * depth + width)
    return Cost(memory, size(step["cosines"], step["indices"]), groups if stay else 0.0, vector=work)


def top(step: Step, roofs: Roofs) -> Cost:
    """As `pick`, for the m best."""
    rows, width, depth, kept = step["cosines"].shape[0], step["D"], step["W"], step["kept"]
    partners = 1.5 * rows * kept * (4.0 * width + 8 * 2.0 * depth)
    read = size(step["tops"]) + rows * 4.0 * width + partners
    return Cost(read, size(step["cosines"], step["indices"], step["rest"]))


ADAM = streamed(("rounded",), ("param", "exp_avg", "exp_avg_sq"), work=20)
KERNELS: dict[str, Callable[[Step, Roofs], Cost]] = {
    "decode_kernel": decode,
    "segment_kernel": segments,
    "fold_kernel": fold,
    "step_kernel": steps,
    "prefix_kernel": prefixes,
    "suffix_kernel": suffixes,
    "add_kernel": streamed(("out",), work=1),
    "order_kernel": order,
    "weighted_row_sum_kernel": weighted_row_sum,
    "moments_kernel": streamed(("column_sums", "scalars")),
    "fraction_kernel": streamed(("value", "variance")),
    "scaled_difference_kernel": streamed(("out",), work=2),
    "row_kernel": ADAM,
    "element_kernel": ADAM,
    "select_kernel": select,
    "score_maxima_kernel": score_maxima,
    "group_select_kernel": group_select,
    "finish_kernel": finish,
    "kron_select_kernel": kron_select,
    "kron_finish_kernel": kron_finish,
    "kron_slope_kernel": streamed(("du", "dv", "p_index", "q_index"), work=16),
    "shift_kernel": streamed(("shift",), work=2),
    "round_kernel": streamed(("rounded", "norms", "residuals"), work=6),
    "rescore_kernel": rescore,
    "overflow_kernel": lambda step, _: Cost(8.0 * step.grid[0]),  # rows whose list overflowed are rare: none
    "score_kernel": dense_scores,
    "prepare_kernel": streamed(("rounded", "inverse", "residual"), work=6),
    "screen_kernel": screen,
    "pick_kernel": pick,
    "top_kernel": top,
    "table_kernel": streamed(("out",), work=2),
}


def cost(step: Step, roofs: Roofs) -> Cost:
    """Raises ValueError for a kernel that KERNELS does not know."""
    if step.view:
        return Cost(launches=0)
    if not step.kernel:
        return torch_operation(step, roofs)
    if step.name not in KERNELS:
        raise ValueError(f"{step.name}: no formula for this kernel; add it to KERNELS in bench/kernel_formulas.py")
    return KERNELS[step.name](step, roofs)
