"""A causal language model of the Hugging Face hub as explainer and as judge."""

from collections.abc import Sequence
from typing import Any

import torch

from saekern.activations import HookedModule
from saekern.interpretation.examples import Examples, Passage

SHOWN = 16  # examples in the prompt, as in KronSAE's protocol

EXPLAIN = """\
A neuron of a language model reads text token by token. Below are passages of text. \
The tokens at which the neuron is active are put in << >>.

{passages}

In one short sentence, what do the marked tokens have in common?
Answer: The neuron is active at"""

DETECT = """\
A neuron of a language model reads text token by token. This is when it is active:
{explanation}

Passage:
{passage}

Is the neuron active at any token of this passage? Answer Yes or No.
Answer:"""

FUZZ = """\
A neuron of a language model reads text token by token. This is when it is active:
{explanation}

In this passage some tokens are put in << >>:
{passage}

Are the tokens in << >> the ones at which the neuron is active? Answer Yes or No.
Answer:"""


class LanguageModelExplainer:
    """Shows a language model 16 random examples of above-median activation, the firing tokens marked, and takes the
    first line of its greedy continuation.

    Args:
        model: from `saekern.activations.load_hugging_face(name or folder)`, or `HookedModule(model, tokenizer)`.
        shown: examples in the prompt.
        new_tokens: at most so many tokens of explanation.

    Source: KronSAE (arXiv 2505.22255, appendix D) shows 16 examples above the median quantile; the prompt is ours.
    """

    def __init__(self, model: HookedModule, *, shown: int = SHOWN, new_tokens: int = 48) -> None:
        self.model, self.shown, self.new_tokens = _checked(model), shown, new_tokens

    @torch.no_grad()
    def __call__(self, examples: Examples) -> str:
        ids = torch.tensor([self.model.tokenizer.encode(self.prompt(examples))], device=self.model.cfg.device)
        end = self.model.tokenizer.eos_token_id
        made = self.model.model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=self.new_tokens,
            do_sample=False,
            pad_token_id=0 if end is None else end,
        )
        said = self.model.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
        return f"The neuron is active at{said.partition(chr(10))[0].rstrip()}"

    def prompt(self, examples: Examples) -> str:
        """The examples come in random order, so that the first ones are a random choice."""
        largest = torch.tensor([example.largest for example in examples.positives])
        median = float(largest.quantile(0.5)) if len(largest) else 0.0
        strong = [example for example in examples.positives if example.largest >= median][: self.shown]
        return EXPLAIN.format(passages="\n".join(example.passage(example.fires).text() for example in strong))


class LanguageModelJudge:
    """Asks a language model about each passage by itself; the score is P(Yes) / (P(Yes) + P(No)) of the next token.

    Nothing is sampled. Where " Yes" and " No" begin with the same tokens (bytes), these end the prompt and the first
    tokens that differ are compared. A model that says Yes to everything has balanced accuracy 0.5.

    Args:
        model: from `saekern.activations.load_hugging_face(name or folder)`, or `HookedModule(model, tokenizer)`.

    Raises:
        ValueError: a tokenizer to which the answers are one.

    Source: ours; KronSAE's judge answers several passages in one text.
    """

    def __init__(self, model: HookedModule) -> None:
        self.model = _checked(model)
        yes, no = (self.model.tokenizer.encode(text, add_special_tokens=False) for text in (" Yes", " No"))
        same = 0
        while same < min(len(yes), len(no)) and yes[same] == no[same]:
            same += 1
        if same == min(len(yes), len(no)):
            raise ValueError(f'tokenizer: expected different tokens for " Yes" and " No", got {yes} and {no}')
        self._common, self._yes, self._no = yes[:same], yes[same], no[same]

    @torch.no_grad()
    def __call__(self, explanation: Any, passages: Sequence[Passage]) -> list[float]:
        prompts = [self.model.tokenizer.encode(prompt(explanation, p)) + self._common for p in passages]
        longest = max((len(ids) for ids in prompts), default=0)
        if not prompts:
            return []
        ids = torch.tensor([[0] * (longest - len(line)) + line for line in prompts], device=self.model.cfg.device)
        mask = torch.tensor([[0] * (longest - len(line)) + [1] * len(line) for line in prompts], device=ids.device)
        padded = bool((mask == 0).any())  # modules without a mask can still judge one at a time
        logits = self.model(ids, attention_mask=mask if padded else None)[:, -1].float()
        return (logits[:, self._yes] - logits[:, self._no]).sigmoid().tolist()


def prompt(explanation: Any, passage: Passage) -> str:
    """What a judge reads."""
    return (DETECT if passage.marks is None else FUZZ).format(explanation=explanation, passage=passage.text())


def _checked(model: HookedModule) -> HookedModule:
    if getattr(model, "tokenizer", None) is None:
        raise ValueError(f"model: expected a HookedModule with a tokenizer, got {type(model).__name__} without one")
    return model
