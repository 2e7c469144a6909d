"""What the README shows must run."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import saekern

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_example_runs(tmp_path):
    """Planted: a misspelt method in the block; caught."""
    block = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    run = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == block.count("print("), run.stdout
    assert "nan" not in run.stdout


def test_names_exist():
    """Also in blocks that need another library. Planted: `saekern.accelerated` in a page; caught."""
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for name in set(re.findall(r"\bsaekern((?:\.[A-Za-z_]\w*)+)", "".join(code_of(page)))):
            found = saekern
            for part in name[1:].split("."):
                found = getattr(found, part) if hasattr(found, part) else import_module(f"{found.__name__}.{part}")


def code_of(page):
    return re.findall(r"```python\n.*?```|`[^`\n]+`", page.read_text(), re.DOTALL)


def test_commands_exist():
    """Planted: `make demon` in the README; caught."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pages = [
        README,
        (ROOT / "CONTRIBUTING.md").read_text(),
        *(page.read_text() for page in (ROOT / "docs").glob("*.md")),
    ]
    for page in pages:
        code = " ".join(re.findall(r"```sh\n.*?```|`[^`\n]+`", page, re.DOTALL))
        for name in re.findall(r"\bmake (?:[A-Z]+=\S+ )*([a-z-]+)", code):
            assert name in targets, f"`make {name}` is not a target"


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_results_region_is_marked():
    """`bench/table.py` writes the table between these two lines."""
    assert re.search(r"^<!-- results:begin -->\n.*?^<!-- results:end -->$", README, re.DOTALL | re.MULTILINE)
