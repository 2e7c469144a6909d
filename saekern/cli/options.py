"""Command-line options from config dataclasses: the docstring under a field is its help."""

import argparse
import ast
import dataclasses
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Mapping
from typing import Any


def descriptions(cls: type) -> dict[str, str]:
    """Field name -> the docstring that stands under it in the class's source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            found[field.target.id] = " ".join(text.value.value.split())
    return found


def add_options(
    group: Any, cls: type, prefix: str = "", skip: tuple[str, ...] = (), parser: argparse.ArgumentParser | None = None
) -> None:
    """One option a field, `--train.batch-size` for a field of a nested config. Absent options leave no trace.

    Args:
        group: a parser or a group of one.
        parser: where nested configs get groups of their own, since groups do not nest; `group` by default.
    """
    parser = parser or group
    hints, texts = typing.get_type_hints(cls), descriptions(cls)
    for field in dataclasses.fields(cls):
        name = f"{prefix}{field.name}"
        if name in skip:
            continue
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            inner = parser.add_argument_group(f"{name}: {texts[field.name]}")
            add_options(inner, typing.cast(type, hint), f"{name}.", skip, parser)
            continue
        shown = f"{texts[field.name]} Default: {_show(field)}."
        kind, options = _kind(hint)
        group.add_argument(
            f"--{name.replace('_', '-')}",
            dest=f"field:{name}",
            default=argparse.SUPPRESS,
            type=kind,
            help=shown.replace("%", "%%"),
            **options,
        )


def given(options: argparse.Namespace) -> dict[str, Any]:
    """The options that were on the command line, as a nested dict of config values."""
    tree: dict[str, Any] = {}
    for name, value in vars(options).items():
        if not name.startswith("field:"):
            continue
        *path, last = name.removeprefix("field:").split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the entries of `over` in their places."""
    result = dict(base)
    for name, value in over.items():
        inner = result.get(name)
        result[name] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return result


def _kind(hint: Any) -> tuple[Any, dict[str, Any]]:
    """argparse's type and other arguments for a field's type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner, options = _kind(next(a for a in arguments if a is not type(None)))
        return _or_none(inner), {"metavar": f"{options['metavar']}|none"}
    if origin is tuple:
        inner, _ = _kind(arguments[0])
        count = "*" if arguments[1:] == (...,) else len(arguments)
        return inner, {"nargs": count, "metavar": inner.__name__.upper()}
    if origin is dict:
        return name_and_value, {"nargs": "*", "metavar": "NAME=VALUE", "action": _Joined}
    if hint is bool:
        return _truth, {"metavar": "true|false", "nargs": "?", "const": True}
    return hint, {"metavar": hint.__name__.upper()}


class _Joined(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, dict(values))


def name_and_value(text: str) -> tuple[str, Any]:
    """NAME=VALUE; the value is JSON where it can be read as that, and text otherwise."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _or_none(kind: Any) -> Any:
    def convert(text: str) -> Any:
        return None if text.lower() in ("none", "null") else kind(text)

    convert.__name__ = kind.__name__  # argparse names it in "invalid int value"
    return convert


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text.lower() == "true"


def _show(field: Any) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return "none"
    value = field.default
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
