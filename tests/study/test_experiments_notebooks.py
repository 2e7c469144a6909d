"""The released notebooks' arms in a study."""

import numpy as np
import pytest
import torch

from saekern.pipeline.experiments.notebooks import NotebooksSettings, file_rows

pytest.importorskip("matplotlib")


def test_notebooks(experiment):
    """Both kinds of rows, all but the first arm shared, the published values beside ours."""
    found, page, _ = experiment("notebooks", NotebooksSettings(rows=1200, epochs=2, seeds=3))
    assert (found["rows"], found["width"]) == (1200, 24)
    for rows, first in (("centred", 0.4187), ("uncentred", 0.2834)):
        assert [arm["shared_init"] for arm in found[rows]["arms"]] == [False, True, True, True]
        assert found[rows]["beside"][0]["published"] == first
        assert {line["sign"] for line in found[rows]["beside"][1:]} <= {"agrees", "disagrees", "undecided"}
    assert "Rows uncentred: the difference from “TopK, random start”" in page


def test_rows_of_a_file(experiment, tmp_path):
    """An .npz of images × patches × width, its last dimension kept."""
    images = np.random.default_rng(0).standard_normal((30, 40, 8)).astype(np.float32)
    path = tmp_path / "images.npz"
    np.savez(path, activations=images, labels=np.arange(30))
    assert torch.equal(file_rows(path).tensor, torch.from_numpy(images.reshape(1200, 8)))
    settings = NotebooksSettings(activations=str(path), rows=600, epochs=2, seeds=3)
    found, page, _ = experiment("notebooks", settings)
    assert (found["rows"], found["width"], found["file"]) == (600, 8, str(path))
    assert "of width 8 from" in page


def test_files_that_do_not_fit(tmp_path):
    with pytest.raises(FileNotFoundError):
        file_rows(tmp_path / "none.npz")
    (tmp_path / "cut.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"cut.npz: truncated or not an .npz file"):
        file_rows(tmp_path / "cut.npz")
    np.savez(tmp_path / "two.npz", a=np.zeros((3, 2)), b=np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"two.npz: expected one floating array \[..., D\], got"):
        file_rows(tmp_path / "two.npz")
    np.save(tmp_path / "rows.npy", np.ones((5, 3), np.float32))
    assert len(file_rows(tmp_path / "rows.npy")) == 5
