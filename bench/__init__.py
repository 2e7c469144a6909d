"""Benchmarks, one file an op; `common.py` times, `peers.py` adapts other libraries, `results/` holds committed CSV."""
