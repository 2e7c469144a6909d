"""Ctrl-C ends a long assignment at once, and the process goes on."""

import signal
import subprocess
import sys
import time

import pytest

SOLVES = {
    "linear_sum_assignment": """
cost = np.random.default_rng(0).random((6000, 6000), np.float32)
solve = lambda: [saekern.linear_sum_assignment(cost) for _ in range(100)]
""",
    "products": """
steps = np.arange(1, 3001, dtype=np.float64)
cost = np.outer(steps, steps)
solve = lambda: saekern.linear_sum_assignment(cost)
""",
    "match": """
a, b = torch.randn(20000, 64), torch.randn(20000, 64)
solve = lambda: [saekern.match(a, b, "assignment") for _ in range(100)]
""",
}

PROGRAM = """
import time
import numpy as np, torch, saekern
torch.set_num_threads(2)
saekern.match(torch.eye(3), torch.eye(3), "assignment")
{setup}
print("begins", flush=True)
try:
    solve()
except KeyboardInterrupt:
    print("interrupted", time.time(), flush=True)
rows, columns = saekern.linear_sum_assignment(np.ones((50, 50)))
assert (rows == columns).all()
index = saekern.match(torch.eye(9), torch.eye(9), "assignment").index
assert index.tolist() == list(range(9))
print("solves again", flush=True)
"""


@pytest.mark.parametrize("what", SOLVES)
def test_ctrl_c(what):
    """0.2 s on a quiet machine; a busy one is given 2."""
    program = PROGRAM.format(setup=SOLVES[what])
    with subprocess.Popen([sys.executable, "-P", "-c", program], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "begins\n"
            time.sleep(0.6)
            sent = time.time()
            process.send_signal(signal.SIGINT)
            answer = process.stdout.readline().split()
            assert answer[:1] == ["interrupted"], f"got {answer}: was it over before it was interrupted?"
            delay = float(answer[1]) - sent
            print(f"{what}: {1e3 * delay:.0f} ms")
            assert delay < 2
            assert process.stdout.readline() == "solves again\n"
        finally:
            process.kill()
