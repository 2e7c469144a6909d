"""The import table: which room of the library may import which. Read from the source, so that lazy imports count."""

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import saekern

ROOT = Path(__file__).parent.parent

# Room -> rooms it may import; what those import is allowed too.
TABLE = {
    "reference": (),
    "ops": ("reference",),
    "sae": ("ops",),
    "activations": (),
    "training": ("sae", "activations"),
    "evaluation": ("sae", "activations"),
    "matching": ("ops",),
    "stability": ("matching", "training", "evaluation"),
    "features": ("sae", "activations", "evaluation", "matching"),
    "formats": ("sae",),
    "interpretation": ("stability",),
    "acceleration": ("sae", "ops"),
    "report": ("stability", "features"),
    "pipeline": ("formats", "acceleration", "interpretation", "report"),
    "cli": ("pipeline", "bench"),
    "__main__": ("cli",),
    "kernels": (),
    "bench": ("pipeline",),
}
OPEN = {"version"}  # imports nothing; anyone may read it
LIBRARIES = {
    "reference": {"torch"},
    "kernels": {"torch", "triton"},
}
PUBLIC = {"", *saekern.__all__}
CORE_LIBRARIES = {"torch", "numpy", "scipy", "safetensors", "tqdm"}
# Installed by an extra or by the user: imported where they are used, never by `import saekern`.
OPTIONAL_LIBRARIES = {
    "transformer_lens",
    "matplotlib",
    "triton",
    "sae_bench",
    "sae_lens",
    "wandb",
    "tensorboard",
    "datasets",
    "transformers",
    "sklearn",
    "huggingface_hub",
    "PIL",
}


def closure(room: str) -> set[str]:
    allowed = {room} | OPEN
    for other in TABLE[room]:
        allowed |= closure(other)
    return allowed


def source_files() -> list[Path]:
    return sorted(path for folder in ("saekern", "kernels", "bench") for path in (ROOT / folder).rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] != "saekern" else parts[1]


def imports(path: Path) -> list[tuple[str, bool]]:
    """Each imported module's full name, and whether the import stands at module level."""
    tree = ast.parse(path.read_text())
    top_level = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [(name, id(node) in top_level) for name in names]
    return found


def parameters() -> list:
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in source_files()]


@pytest.mark.parametrize("path", parameters())
def test_room_imports_only_what_the_table_allows(path):
    """Planted: `import saekern.sae` in reference/decode.py, `from saekern import _C` in matching; caught."""
    room = room_of(path)
    if room in ("__init__", "version"):  # the former gathers the public names
        return
    allowed = closure(room)
    for name, top_level in imports(path):
        parts = name.split(".")
        if parts[0] != "saekern":
            continue
        target = parts[1] if len(parts) > 1 else ""
        where = f"{path.relative_to(ROOT)} imports {name}"
        if target == "_C":
            assert room == "ops" or path.name == "assignment.py", f"{where}: only ops and matching/assignment.py may"
        elif target == "kernels":
            assert room in ("kernels", "bench") or (room == "ops" and not top_level), (
                f"{where}: only ops may, inside the CUDA function"
            )
        else:
            assert target in allowed or (target in PUBLIC and room in ("cli", "bench")), (
                f"{where}: the table allows {sorted(allowed)}"
            )


@pytest.mark.parametrize("path", parameters())
def test_third_party_imports_are_declared(path):
    """Planted: `import pandas` in reference/decode.py; caught."""
    room = room_of(path)
    for name, _ in imports(path):
        library = name.split(".")[0]
        if library == "saekern" or library in sys.stdlib_module_names or room == "bench":
            continue
        allowed = LIBRARIES.get(room, CORE_LIBRARIES | OPTIONAL_LIBRARIES)
        assert library in allowed, f"{path.relative_to(ROOT)} imports {library}; allowed here: {sorted(allowed)}"


def test_folders_are_never_imported_by_their_own_name():
    """`import kernels` from the checkout makes a second copy of saekern.kernels and shadows PyPI's `kernels`."""
    for path in [*source_files(), *(ROOT / "tests").rglob("*.py")]:
        for name, _ in imports(path):
            assert name.split(".")[0] not in ("kernels", "bench"), f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("path", parameters())
def test_no_environment_variables_and_no_prints(path):
    """Planted: `os.environ.get("SAEKERN_THREADS")` and a print in ops/library.py; both caught."""
    where = path.relative_to(ROOT)
    for node in ast.walk(ast.parse(path.read_text())):
        if where.parts[0] != "bench" and isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            assert name not in ("environ", "getenv"), f"{where}:{node.lineno} reads an environment variable"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            assert room_of(path) in ("cli", "bench"), f"{where}:{node.lineno} prints; the library logs"


def test_import_saekern_is_light():
    """Planted: `import matplotlib` in ops/library.py; caught."""
    public = "[getattr(saekern, name) for name in saekern.__all__]"  # what is loaded lazily counts too
    code = f"import sys, saekern; {public}; print(*{{name.split('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True)
    heavy = set(run.stdout.split()) & OPTIONAL_LIBRARIES
    assert not heavy, f"`import saekern` loads {sorted(heavy)}"


def test_algorithm_files_know_neither_python_nor_torch():
    for path in [*(ROOT / "csrc").rglob("*.cpp"), *(ROOT / "csrc").rglob("*.h")]:
        if path.name == "bindings.cpp":
            continue
        text = path.read_text()
        for forbidden in ("pybind11", "Python.h", "torch/", "ATen", "omp.h"):
            assert forbidden not in text, f"{path.relative_to(ROOT)} mentions {forbidden}"


def test_version_has_one_source():
    assert saekern.__version__ == version("saekern")
