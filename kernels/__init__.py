"""Triton kernels, one op a file: the `@triton.jit` code, then its launcher. Imports torch and triton only."""
