"""Hugging Face models, and any torch module, by the names of their submodules.

`HookedModule` offers what harvesting, splicing and the evaluations ask of a TransformerLens model. transformers is
imported only to load a model by name.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

INPUT = ":input"
PREFIX = "hf:"


class HookedModule:
    """A torch module with TransformerLens' `hook_dict`, `hooks`, `run_with_hooks` and `cfg`.

    A hook has the name of a submodule, such as "transformer.h.3", and sees its output; with ":input" behind the name
    ("model.layers.3.self_attn.o_proj:input", which is hook_z) its input. Of a tuple or a mapping it sees the first
    tensor, and the rest passes by untouched.

    Args:
        model: the module; it is called with what its `forward` takes of input_ids or pixel_values, attention_mask,
            position_ids and use_cache, and with the input alone if it takes none of them.
        tokenizer: kept for the text beside the rows of a harvest.
        name: what caches call the model; None: its config's name, or its class.
    """

    def __init__(self, model: nn.Module, tokenizer: Any = None, name: str | None = None) -> None:
        self.model, self.tokenizer = model, tokenizer
        named = {key: module for key, module in model.named_modules() if key}
        self.hook_dict = named | {key + INPUT: module for key, module in named.items()}
        known = getattr(getattr(model, "config", None), "_name_or_path", None)
        self.cfg = _Config(model, name or known or type(model).__name__)
        parameters = inspect.signature(model.forward).parameters
        anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        self._takes = {name: name in parameters or anything for name in ("attention_mask", "position_ids", "use_cache")}
        self._named_input = {name: name in parameters for name in ("input_ids", "pixel_values")}

    def state_dict(self) -> Mapping[str, Tensor]:
        return self.model.state_dict()

    def __call__(self, inputs: Tensor, return_type: str | None = "logits", attention_mask: Tensor | None = None) -> Any:
        """The logits of token ids [B, T], or the model's first output where it has no logits; None if `return_type` is.

        Args:
            inputs: token ids (integers), or pixel values (floating).
            attention_mask: [B, T], nonzero for real tokens. Positions then count real tokens only, so that padding
                on the left moves nothing.
        """
        if return_type not in ("logits", None):
            raise ValueError(f'return_type: expected "logits" or None, got {return_type!r}')
        keywords: dict[str, Any] = {"use_cache": False} if self._takes["use_cache"] else {}
        if attention_mask is not None:
            keywords |= self._masked(attention_mask.to(inputs.device).long())
        kind = "pixel_values" if inputs.is_floating_point() else "input_ids"
        named = self._named_input[kind]
        output = self.model(**{kind: inputs}, **keywords) if named else self.model(inputs, **keywords)
        if return_type is None:
            return None
        logits = getattr(output, "logits", None)
        return _first(output)[0] if logits is None else logits

    def _masked(self, mask: Tensor) -> dict[str, Tensor]:
        if not self._takes["attention_mask"]:
            raise ValueError(f"attention_mask: {type(self.model).__name__}.forward takes none")
        keywords = {"attention_mask": mask}
        if self._takes["position_ids"]:
            keywords["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        return keywords

    @contextmanager
    def hooks(self, fwd_hooks: Sequence[tuple[str, Callable[..., Any]]] = ()) -> Iterator["HookedModule"]:
        """Functions f(activation, hook=…) at their places while the context lasts; what one returns replaces."""
        handles: list[Any] = []
        try:
            for name, function in fwd_hooks:
                handles.append(_attach(self.hook_dict[name], name, function))
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def run_with_hooks(
        self, inputs: Tensor, return_type: str | None = "logits", fwd_hooks: Sequence[Any] = (), **keywords: Any
    ) -> Any:
        with self.hooks(fwd_hooks):
            return self(inputs, return_type, **keywords)


class _Config:
    def __init__(self, model: nn.Module, name: str) -> None:
        self._model, self.model_name = model, name

    @property
    def device(self) -> torch.device:
        parameter = next(self._model.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device


def hooked(model: Any) -> Any:
    """The model itself if it has TransformerLens' hooks, else a `HookedModule` around it."""
    if hasattr(model, "hook_dict"):
        return model
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a TransformerLens model or a torch module, got {type(model).__name__}")
    return HookedModule(model)


def check_hook(model: Any, hook: str) -> None:
    """ValueError with some names that there are, if the model has no such hook."""
    if hook not in model.hook_dict:
        raise ValueError(f"hook: {hook!r} is not a hook of this model; for example {', '.join(_examples(model))}")


def load_hugging_face(name: str, device: str = "cpu") -> HookedModule:
    """A causal language model and its tokenizer from the Hugging Face hub or a folder, in the dtype it was saved in.

    Raises:
        ImportError: transformers is missing or cannot be imported.
        OSError: the hub cannot be reached, or has no such model.
    """
    transformers = import_transformers()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype="auto")
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except ImportError as error:
        raise ImportError(explain(error)) from error
    except Exception as error:  # offline shows as OSError, a httpx or a requests error, depending on versions
        raise OSError(f"model {name!r} could not be loaded ({type(error).__name__}: {error})") from error
    return HookedModule(model.to(device).eval().requires_grad_(False), tokenizer, name)


def import_transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(explain(error)) from error
    return transformers


def explain(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("transformers"):
        return "models of the Hugging Face hub need transformers: pip install transformers"
    if "torchvision" in str(error) or "PreTrainedModel" in str(error):
        return (
            f"transformers cannot be imported ({error}). An installed torchvision does not fit this PyTorch;"
            " nothing here needs it: pip uninstall torchvision"
        )
    return f"transformers cannot be imported: {error}"


def _attach(module: nn.Module, name: str, function: Callable[..., Any]) -> Any:
    point = SimpleNamespace(name=name)
    if not name.endswith(INPUT):

        def after(module: nn.Module, arguments: Any, output: Any) -> Any:
            tensor, put_back = _first(output)
            new = function(tensor, hook=point)
            return None if new is None else put_back(new)

        return module.register_forward_hook(after)

    def before(module: nn.Module, arguments: tuple, keywords: dict[str, Any]) -> Any:
        positional = any(isinstance(argument, Tensor) for argument in arguments)
        tensor, put_back = _first(arguments if positional else keywords)
        new = function(tensor, hook=point)
        if new is None:
            return None
        return (put_back(new), keywords) if positional else (arguments, put_back(new))

    return module.register_forward_pre_hook(before, with_kwargs=True)


def _first(value: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The first tensor of a tensor, sequence or mapping, and what makes the same with another one in its place."""
    if isinstance(value, Tensor):
        return value, lambda new: new
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, Sequence) else ()
    for key, item in items:
        if isinstance(item, Tensor):
            return item, partial(_with, value, key)
    raise TypeError(f"hook: expected a module that passes on a tensor, got {type(value).__name__}")


def _with(value: Any, key: Any, new: Tensor) -> Any:
    if isinstance(value, Mapping):  # dict, and ModelOutput of transformers
        changed: Any = copy.copy(value)
        changed[key] = new
        return changed
    parts = [*value[:key], new, *value[key + 1 :]]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def _examples(model: Any) -> list[str]:
    residual = [name for name in model.hook_dict if name.startswith("blocks.0.hook_resid")]
    layers = [name for name in model.hook_dict if name.endswith((".0", ".1", ".2"))]  # of plain torch modules
    return sorted(residual or layers or model.hook_dict)[:4]
