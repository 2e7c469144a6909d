"""Files in both directions beside dictionary_learning itself: what it writes we read, and what we write it reads."""

import importlib

import foreign_saes
import pytest
import torch
from format_checks import assert_answers, assert_round_trip

import saekern
from saekern.bench.common import Absent

pytestmark = pytest.mark.peers
try:
    CASES = {foreign.name: foreign for foreign in foreign_saes.dictionary_learning()}
except Absent as error:
    pytest.skip(str(error), allow_module_level=True)

OURS = {
    "AutoEncoder": lambda: saekern.ReLUSAE(12, 20, init_seed=1),
    "AutoEncoderNew": lambda: saekern.ReLUSAE(12, 20, subtract_b_dec=False, init_seed=1),
    "GatedAutoEncoder": lambda: saekern.GatedSAE(12, 20, init_seed=1),
    "JumpReluAutoEncoder": lambda: saekern.JumpReLUSAE(12, 20, subtract_b_dec=False, init_seed=1),
    "AutoEncoderTopK": lambda: saekern.TopKSAE(12, 20, 3, init_seed=1),
    "BatchTopKSAE": lambda: saekern.BatchTopKSAE(12, 20, 3, init_seed=1),
    "MatryoshkaBatchTopKSAE": lambda: saekern.MatryoshkaSAE(12, 20, 3, prefixes=[4, 20], init_seed=1),
}


@pytest.fixture
def answers():
    def of(model, x):
        with torch.no_grad():
            return foreign_saes.answers_dictionary_learning(model, x)

    return of


def read_by_the_library(folder):
    *_, utils = foreign_saes.dictionary_learning_modules()
    return utils.load_dictionary(str(folder), "cpu")


@pytest.mark.parametrize("name", OURS)
def test_theirs_read(name, tmp_path, answers, record_property):
    foreign_saes.write_dictionary_learning(CASES[name], tmp_path / "theirs")
    sae, x = assert_round_trip(tmp_path / "theirs", tmp_path, "dictionary_learning", {}), foreign_saes.rows(256)
    record_property("of the bound", assert_answers(sae, x, *answers(CASES[name].model, x)))


@pytest.mark.parametrize("name", OURS)
def test_their_loader_agrees(name, tmp_path, answers):
    """load_dictionary, of their file and of ours of the same; with fold=True for the class whose decoder it scales."""
    foreign_saes.write_dictionary_learning(CASES[name], tmp_path / "theirs")
    sae, x = saekern.load(tmp_path / "theirs", fold=name == "AutoEncoder"), foreign_saes.rows(256)
    saekern.save(sae, tmp_path / "ours", "dictionary_learning")
    for folder in ("theirs", "ours"):
        model, config = read_by_the_library(tmp_path / folder)
        assert type(model).__name__ == name
        assert config["trainer"]["lr"] == 7e-05
        assert_answers(sae, x, *answers(model, x))


@pytest.mark.parametrize("name", OURS)
def test_ours_written(name, tmp_path, answers):
    """An SAE that never was theirs, also after training, when a threshold is set."""
    sae, x = OURS[name](), foreign_saes.rows(256)
    if name == "BatchTopKSAE":
        sae.loss(x)
        assert float(sae.threshold) > 0
    saekern.save(sae, tmp_path / "ours", "dictionary_learning")
    model, _ = read_by_the_library(tmp_path / "ours")
    assert type(model).__name__ == name
    if name == "AutoEncoder":  # whose decoder it scales to norm 1, and so what its codes are
        sae = saekern.load(tmp_path / "ours", fold=True)
    assert_answers(sae, x, *answers(model, x))


def test_negative_thresholds(tmp_path, answers):
    """Their encoder, for which fold=True sets them to 0."""
    model = CASES["JumpReluAutoEncoder"].model
    before = model.threshold.detach().clone()
    with torch.no_grad():
        model.threshold.sub_(0.25)
    foreign_saes.write_dictionary_learning(CASES["JumpReluAutoEncoder"], tmp_path / "theirs")
    x = foreign_saes.rows(256)
    assert_answers(saekern.load(tmp_path / "theirs", fold=True), x, *answers(model, x))
    model.threshold.data.copy_(before)


def test_a_run_of_its_trainer(tmp_path, answers):
    """trainSAE's own folder: config with all keys, checkpoints, a threshold that it learnt."""
    _, _, batch_top_k, _, _ = foreign_saes.dictionary_learning_modules()
    with foreign_saes.stand_ins("nnsight", "zstandard", "datasets", "wandb"):
        training = importlib.import_module("dictionary_learning.training")
    trainer = {
        "trainer": batch_top_k.BatchTopKTrainer,
        "steps": 30,
        "activation_dim": 12,
        "dict_size": 20,
        "k": 3,
        "layer": 0,
        "lm_name": "tiny",
        "device": "cpu",
        "warmup_steps": 0,
        "threshold_start_step": 5,
        "seed": 0,
    }
    data = iter(foreign_saes.rows(31 * 64).split(64))
    training.trainSAE(data, [trainer], 30, save_dir=str(tmp_path), save_steps=[20], device="cpu")
    folder = tmp_path / "trainer_0"
    sae, x = saekern.load(folder), foreign_saes.rows(256)
    assert float(sae.threshold) > 0
    model, _ = read_by_the_library(folder)
    assert_answers(sae, x, *answers(model, x))
    middle = saekern.load(folder / "checkpoints" / "ae_20.pt")
    assert not torch.equal(middle.W_dec, sae.W_dec)
