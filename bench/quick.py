"""`make bench-quick`: our own ops at small shapes under pytest-benchmark, to notice regressions between commits.

`pytest bench/quick.py --benchmark-autosave` keeps a run; with `--benchmark-compare --benchmark-compare-fail=median:20%`
a later one fails where it is slower.
"""

import pytest

from saekern.bench.common import verify, words
from saekern.bench.table import all_benches

CASES = [
    pytest.param(bench, shape, id=f"{bench.op}-{bench.mode}-{words(shape)}".replace(" ", "_"))
    for bench in all_benches()
    if bench.op != "memory" and not bench.reads_data  # the step that train_step times; nothing here names a folder
    for shape in bench.quick
]


@pytest.mark.parametrize(("bench", "shape"), CASES)
def test_quick(benchmark, bench, shape):
    run = bench.setup(bench.inputs(shape), "saekern")
    verify(run)
    benchmark.group = bench.op
    benchmark.pedantic(run.call, setup=run.prepare, rounds=30, warmup_rounds=2)
