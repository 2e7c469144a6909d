"""`saekern/_C.pyi` is written by hand; it must name the functions and arguments that the extension has."""

import ast
from pathlib import Path

from saekern import _C

STUB = Path(__file__).parent.parent / "saekern" / "_C.pyi"


def arguments(definition: ast.FunctionDef) -> list[tuple[str, bool]]:
    """Names in order, and whether each has a default."""
    names = [argument.arg for argument in definition.args.args]
    required = len(names) - len(definition.args.defaults)
    return [(name, i >= required) for i, name in enumerate(names)]


def signatures(function) -> list[ast.FunctionDef]:
    """What pybind11 writes into the docstring: one line, or a numbered one for each overload."""
    lines = [line.split(". ", 1)[-1] for line in function.__doc__.splitlines()]
    lines = [line for line in lines if line.startswith(f"{function.__name__}(") and "*args" not in line]
    return [ast.parse(f"def {line}: ...").body[0] for line in lines]


def test_stub_matches_the_extension():
    """Planted: an argument renamed, a function left out of the stub; both caught."""
    body = ast.parse(STUB.read_text()).body
    stub = [node for node in body if isinstance(node, ast.FunctionDef)]
    built = {name for name in dir(_C) if callable(getattr(_C, name)) and not name.startswith("_")}
    constants = {node.target.id for node in body if isinstance(node, ast.AnnAssign)}
    assert constants == {name for name in dir(_C) if not name.startswith("_")} - built
    assert {node.name for node in stub} == built
    for name in built:
        written = {tuple(arguments(node)) for node in stub if node.name == name}
        compiled = {tuple(arguments(node)) for node in signatures(getattr(_C, name))}
        assert written == compiled, name
