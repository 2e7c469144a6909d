"""A causal language model as explainer and judge: what it is asked, and that nothing is sampled."""

import pytest
import torch

from saekern.activations import HookedModule
from saekern.interpretation import LanguageModelExplainer, LanguageModelJudge
from saekern.interpretation.examples import Example, Examples, Passage

transformers = pytest.importorskip("transformers")


class Bytes:
    """A tokenizer whose tokens are bytes."""

    eos_token_id = None

    def encode(self, text, add_special_tokens=True):
        return list(text.encode())

    def decode(self, ids, skip_special_tokens=True):
        return bytes(int(i) % 128 for i in ids).decode()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=256, n_positions=2048, n_embd=16, n_layer=1, n_head=2)
    return HookedModule(transformers.GPT2LMHeadModel(config).eval(), Bytes())


PASSAGES = [Passage(list("the cat"), 0), Passage(list("a dog"), 0, (2, 3, 4)), Passage(list("then she said"), 0)]


def test_judge_is_the_probability_of_yes(model):
    """Against the model asked by hand. Planted: Yes and No exchanged; padding without a mask; both caught."""
    answers = LanguageModelJudge(model)("The neuron is active at t.", PASSAGES)
    for passage, answer in zip(PASSAGES, answers, strict=True):
        (alone,) = LanguageModelJudge(model)("The neuron is active at t.", [passage])
        assert answer == pytest.approx(alone, abs=1e-5)
    from saekern.interpretation.language_model import prompt

    ids = torch.tensor([list((prompt("The neuron is active at t.", PASSAGES[0]) + " ").encode())])
    with torch.no_grad():
        logits = model.model(input_ids=ids).logits[0, -1]
    assert answers[0] == pytest.approx(float((logits[ord("Y")] - logits[ord("N")]).sigmoid()), abs=1e-5)
    assert LanguageModelJudge(model)("any", []) == []


def test_explainer_shows_marked_examples_and_repeats_itself(model):
    example = Example(list("the cat"), 0, [1.0, 0, 0, 0, 0, 0, 2.0])
    explainer = LanguageModelExplainer(model, new_tokens=4)
    assert "<<t>>he ca<<t>>" in explainer.prompt(Examples([example], []))
    first, again = (explainer(Examples([example], [])) for _ in range(2))
    assert first == again
    assert first.startswith("The neuron is active at")


def test_a_model_without_tokenizer_is_refused(model):
    with pytest.raises(ValueError, match="expected a HookedModule with a tokenizer"):
        LanguageModelJudge(HookedModule(model.model))


def test_examples_above_the_median_are_shown(model):
    """Planted: weak ones shown too; caught."""
    strong = [Example(list(f"strong{i:02d}x"), 0, [0.0] * 8 + [2.0 + i]) for i in range(20)]
    weak = [Example(list(f"weak{i:02d}x"), 0, [0.0] * 6 + [1.0]) for i in range(20)]
    examples = Examples([one for pair in zip(weak, strong, strict=True) for one in pair], [])
    text = LanguageModelExplainer(model).prompt(examples)
    assert [text.count(word) for word in ("strong", "<<x>>", "weak")] == [16, 16, 0]
