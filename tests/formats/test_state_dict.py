"""What formats with a state dict share.

Planted: `unpacked` without its limit; a text of another size believed; weights of whole numbers let through; caught.
"""

import pickle
import zipfile
import zlib
from base64 import b85encode

import pytest
import torch

import saekern
from saekern.formats import detect, state_dict


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.float64])
def test_packed_tensors_come_back(dtype):
    tensor = (100 * torch.randn(7, 3)).to(dtype)
    text = state_dict.packed(tensor.T)
    assert torch.equal(state_dict.unpacked(text, (3, 7), dtype), tensor.T)
    for other in ((3, 8), (3, 6), (0,)):
        assert state_dict.unpacked(text, other, dtype) is None


def test_a_text_that_grows_is_not_followed(monkeypatch):
    text = b85encode(zlib.compress(bytes(2**26), 9)).decode()
    assert len(text) < 10**5
    asked = []
    real = zlib.decompressobj

    class Counting:
        def __init__(self):
            self.inner = real()

        def decompress(self, data, most=0):
            out = self.inner.decompress(data, most)
            asked.append(len(out))
            return out

        eof = False

    monkeypatch.setattr(state_dict.zlib, "decompressobj", Counting)
    assert state_dict.unpacked(text, (20,), torch.float32) is None
    assert asked == [81]


@pytest.mark.parametrize("text", [None, 3, ["a"], "", "\x00", "no text of ours", b85encode(b"nothing").decode()])
def test_what_is_no_packed_tensor(text):
    assert state_dict.unpacked(text, (20,), torch.float32) is None


class Malicious:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize("format", ["openai", "overcomplete"])
def test_code_in_a_file_is_not_run(format, tmp_path, capsys):
    """Neither in recognising nor in reading it."""
    names = ("latent_bias", "pre_bias") if format == "openai" else ("dictionary._weights", "encoder.weight")
    torch.save({**dict.fromkeys(names, torch.ones(2)), "x": Malicious()}, tmp_path / "sae.pt")
    assert list(detect(tmp_path / "sae.pt")) == [format]
    with pytest.raises(ValueError, match="refused, or damaged"):
        saekern.load(tmp_path / "sae.pt")
    assert capsys.readouterr().out == ""


def test_files_that_are_something_else(tmp_path):
    """Recognised by nobody, whatever their ending."""
    (tmp_path / "text.pt").write_text("latent_bias pre_bias")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"latent_bias": 1, "pre_bias": 2}))
    with zipfile.ZipFile(tmp_path / "empty.pt", "w"):
        pass
    torch.save({"latent_bias": torch.ones(2), "pre_bias": torch.ones(2)}, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "torn.pt").write_bytes(whole[: len(whole) // 2])
    for name in ("text", "plain", "empty", "torn"):
        assert detect(tmp_path / f"{name}.pt") == {}, name
        with pytest.raises(ValueError, match="no known format"):
            saekern.load(tmp_path / f"{name}.pt")
    assert list(detect(tmp_path / "whole.pt")) == ["openai"]


def test_integers_are_no_weights(tmp_path):
    weights = {"encoder.weight": torch.ones(4, 3), "decoder.weight": torch.ones(3, 4, dtype=torch.int64)}
    torch.save(
        weights | {"latent_bias": torch.ones(4), "pre_bias": torch.ones(3), "activation": "ReLU"}, tmp_path / "s.pt"
    )
    with pytest.raises(ValueError, match=r"W_dec: expected floating point of shape \[4, 3\], got int64 \[4, 3\]"):
        saekern.load(tmp_path / "s.pt")
