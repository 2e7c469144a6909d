"""How a kernel is launched, written down so that it can be compiled and judged on a machine without a GPU."""

from typing import NamedTuple

from triton.runtime import JITFunction


class Form(NamedTuple):
    """One way a launcher starts a kernel: all that ahead-of-time compilation needs.

    A kernel file's `forms()` builds these from the same constants that its launcher uses, so that what is gated is
    what runs.
    """

    kernel: JITFunction
    signature: dict[str, str]  # run-time argument -> "*bf16", "*fp32", "*i64", "i32", "i64", "fp32"
    constants: dict[str, object]  # constexpr arguments
    num_warps: int
    num_stages: int = 3  # what Triton takes where a launcher says nothing
    aligned: tuple[str, ...] = ()  # arguments divisible by 16: pointers, leading dimensions
    matrix: bool = False  # has to use the tensor cores
    gather: bool = False  # has to load 128 bits a thread
    nan: bool = False  # the maxima of floats that it takes have to keep NaN, which the plain instruction drops
    registers: int = 255  # a thread's limit; fewer where occupancy is counted on
    capped: bool = False  # the launcher tells the assembler so, by `maxnreg`
