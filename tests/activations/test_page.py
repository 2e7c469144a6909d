"""docs/language_models.md runs from top to bottom; the models it names are tiny random ones here."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "language_models.md"


@pytest.mark.lens
def test_page_runs(tmp_path):
    """Planted: a misspelt keyword in the fifth block; caught."""
    pytest.importorskip("transformer_lens", reason="needs transformer-lens")
    transformers = pytest.importorskip("transformers")
    image = pytest.importorskip("PIL.Image")
    shape = {"vocab_size": 31, "n_positions": 32, "n_embd": 12, "n_layer": 6, "n_head": 2}
    config = transformers.GPT2Config(**shape, bos_token_id=0, eos_token_id=0)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    small = {"hidden_size": 16, "num_hidden_layers": 9, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    vision = tmp_path / "facebook" / "dinov2-base"
    transformers.Dinov2Model(transformers.Dinov2Config(**small)).save_pretrained(vision)
    (vision / "preprocessor_config.json").write_text(
        '{"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 32},'
        ' "crop_size": {"height": 32, "width": 32}}'
    )
    (tmp_path / "photos").mkdir()
    image.new("RGB", (40, 50), "red").save(tmp_path / "photos" / "a.png")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 7
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert "Patch(file='a.png', row=0, column=0)" in run.stdout
    assert "nan" not in run.stdout
