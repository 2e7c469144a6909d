"""Every architecture trains through the loop, resumes with the same bytes, buffers included, and loads."""

import pytest
import torch

import saekern

MAKERS = {
    "relu": lambda: saekern.ReLUSAE(8, 32, warmup_steps=6, init_seed=0),
    "jumprelu": lambda: saekern.JumpReLUSAE(8, 32, bandwidth=0.05, target_l0=4, warmup_steps=6, init_seed=0),
    "batch_topk": lambda: saekern.BatchTopKSAE(8, 32, 4, k_aux=2, init_seed=0),
    "hierarchical_topk": lambda: saekern.HierarchicalTopKSAE(8, 32, 4, budgets=[1, 4], k_aux=2, init_seed=0),
    "kron": lambda: saekern.KronSAE(8, 32, 4, m=2, n=4, k_aux=2, init_seed=0),
    "matryoshka": lambda: saekern.MatryoshkaSAE(8, 32, 4, k_aux=2, init_seed=0),
    "gated": lambda: saekern.GatedSAE(8, 32, warmup_steps=6, init_seed=0),
}


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", MAKERS)
def test_killed_runs_end_with_the_same_bytes(tmp_path, make_rows, resumed, name, bf16):
    """Planted: the threshold not saved; the warm-up's count not saved. Both caught."""
    settings = saekern.TrainConfig(
        rows=640, batch_size=64, lr=3e-3, checkpoint_every=4, log_every=1, dead_after=256, bf16=bf16
    )
    rows, make = make_rows(), MAKERS[name]
    whole = saekern.train(make(), rows, settings, out=tmp_path / "whole", progress=False)
    resumed(make, rows, settings, tmp_path / "killed", 8)
    for file in ("config.json", "sae.safetensors", "state.safetensors", "train.jsonl"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    loaded = saekern.load(tmp_path / "whole")
    assert type(loaded) is type(whole.sae)
    assert all(torch.equal(a, loaded.state_dict()[n]) for n, a in whole.sae.state_dict().items())
    assert whole.log[-1]["loss"] < whole.log[0]["loss"]
