"""What a study keeps for the latent explorer."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from saekern.pipeline import study
from saekern.pipeline.explorer import choose


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "study")
    return tmp_path / "study"


def test_partners_are_those_of_the_dictionaries(small_config, finished):
    """In float64 by the full cosine matrix, among latents that fire.

    Planted: margins to dead runners-up; "mutual" compared with the way there; both caught."""
    rows = [load_file(finished / f"seeds/{i:03d}/sae.safetensors")["W_dec"].double() for i in range(3)]
    rows = [torch.nn.functional.normalize(one, dim=1) for one in rows]
    live = load_file(finished / "results/stability.safetensors")["live"].bool()
    found = load_file(finished / "results/explorer.safetensors")
    chosen = found["chosen"]
    assert chosen.tolist() == list(range(64))  # fewer latents than are asked for: all
    for j in (1, 2):
        cosines = rows[0] @ rows[j].T
        cosines[:, ~live[j]] = -2
        best, index = cosines.topk(2, dim=1)
        back = (rows[j] @ rows[0][live[0]].T).argmax(1)
        mutual = live[0].nonzero()[:, 0][back][index[:, 0]] == chosen
        alive = live[0]
        assert not alive.all()
        partner = found["partner"][:, j - 1]
        assert partner[alive].tolist() == index[alive, 0].tolist()
        assert (partner[~alive] == -1).all()
        for name, expected in (("partner_cosine", best[:, 0]), ("margin", best[:, 0] - best[:, 1])):
            torch.testing.assert_close(found[name][alive, j - 1].double(), expected[alive], atol=1e-6, rtol=0)
            assert found[name][~alive, j - 1].isnan().all()
        assert found["mutual"][alive, j - 1].bool().tolist() == mutual[alive].tolist()
    mean = found["partner_cosine"].double().mean(1)
    torch.testing.assert_close(found["cosine"].double(), mean, atol=1e-6, rtol=0, equal_nan=True)


def test_records_agree_with_the_study(finished):
    """Firing rows are those of the evaluation; the strongest context is that of the table."""
    records = json.loads((finished / "results/explorer.json").read_text())
    counts = load_file(finished / "results/seeds/000.safetensors")["firing_counts"]
    assert records["rows"] == 400
    assert [record["n"] for record in records["latents"]] == counts.tolist()
    for line in json.loads((finished / "results/latents.json").read_text()):
        best = records["latents"][line["latent"]]["bands"][0]
        assert np.isclose(best["high"], line["snippets"][0]["value"], rtol=1e-3)
        focus, _, pieces, _ = best["texts"][0]
        assert pieces[focus] == line["snippets"][0]["token"]


def test_choose():
    """Both ends, and others at random, the same every time. Planted: one end alone; caught."""
    order = torch.tensor([9, 3, 5, 1, 7, 0])
    assert choose(order, 12, 2, 0).tolist() == [0, 3, 7, 9]
    assert choose(order, 12, 0, 0).tolist() == []
    some = choose(order, 12, 1, 4).tolist()
    assert len(some) == 6
    assert {9, 0} <= set(some)
    assert some == choose(order, 12, 1, 4).tolist()
    assert choose(order, 12, 500, 1000).tolist() == list(range(12))
    assert choose(order[:0], 12, 500, 3).numel() == 3


def test_fewer_or_none(small_config, copied):
    """Only the step of the latents and the page run again."""
    config = small_config()
    for ends, others, count in ((2, 3, 7), (0, 0, 0)):
        shown = dataclasses.replace(config.report, explorer=ends, explorer_random=others)
        done = study(dataclasses.replace(config, report=shown), copied, progress=False)
        assert done.ran == ("latents", "report")
        found = done.results().explorer
        assert len(found["chosen"]) == len(found["records"]) == count
        assert found["partner"].shape == (count, 2)
        assert 'id="explorer-data"' in done.report.read_text()
