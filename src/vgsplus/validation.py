"""Validation of settings by pydantic; its errors become a `ConfigError` that names all problems by path."""

import dataclasses
import difflib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import pydantic.dataclasses
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ArgsKwargs

from vgsplus.errors import ConfigError


@typing.dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field,))
def config_dataclass[T](cls: type[T]) -> type[T]:
    """Make a frozen, keyword-only pydantic dataclass that refuses unknown keys and infinite numbers.

    Constructing it with impossible values raises ConfigError.
    """
    config = ConfigDict(extra="forbid", allow_inf_nan=False)
    wrapped: Any = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=config)(cls)
    construct = wrapped.__init__

    @functools.wraps(construct)
    def __init__(self: T, *args: object, **kwargs: object) -> None:  # noqa: N807 - replaces it
        try:
            construct(self, *args, **kwargs)
        except ValidationError as error:
            raise _ProblemsError(_describe(wrapped, error)) from None

    wrapped.__init__ = __init__
    validated: type[T] = wrapped
    return validated


def validate[T](kind: Callable[..., T], values: Any, path: str = "") -> T:  # noqa: ANN401 - any value
    """Build a dataclass, or call a function, from plain values.

    Args:
        kind: a type that pydantic knows, or a function with type hints.
        values: of the type, or the keyword arguments of the function.
        path: where the values stand, for messages.

    Raises:
        ConfigError: names the dotted path and reason of every problem, and the nearest key to an unknown one.
    """
    given = ArgsKwargs((), values) if inspect.isroutine(kind) else values
    adapter: TypeAdapter[T] = TypeAdapter(kind)  # type: ignore[arg-type] # which also takes functions
    try:
        return adapter.validate_python(given)
    except ValidationError as error:
        raise _ProblemsError(_prefixed(path, _describe(kind, error))) from None


class _ProblemsError(ConfigError):
    """Problems as pairs of a dotted path and a reason."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        self.problems = problems
        super().__init__("\n".join(f"{path}: {reason}" if path else reason for path, reason in problems))


def _prefixed(prefix: str, problems: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(".".join(part for part in (prefix, path) if part), reason) for path, reason in problems]


def _describe(kind: Any, error: ValidationError) -> list[tuple[str, str]]:  # noqa: ANN401 - as in `validate`
    problems = []
    for found in error.errors(include_url=False):
        cause = found.get("ctx", {}).get("error")
        nested = cause.problems if isinstance(cause, _ProblemsError) else [("", _reason(kind, found))]
        problems += _prefixed(".".join(map(str, found["loc"])), nested)
    return problems


def _reason(kind: Any, problem: Any) -> str:  # noqa: ANN401 - as in `validate`; pydantic's ErrorDetails
    if problem["type"] == "unexpected_keyword_argument":
        *parents, key = problem["loc"]
        known = _keys_at(kind, parents)
        nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
        return f"there is no such key; the nearest is {nearest[0]!r} (of {', '.join(known)})"
    if problem["type"].startswith("missing"):
        return "is missing"
    reason = problem["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(problem["input"], dict | ArgsKwargs) else f", not {problem['input']!r}"
    return f"{reason[:1].lower()}{reason[1:]}{shown}"


def _keys_at(kind: Any, place: Sequence[str | int]) -> list[str]:  # noqa: ANN401 - as in `validate`
    """Return the keys of the dataclass at `place` within `kind`."""
    for part in place:
        kind = typing.get_args(kind)[0] if isinstance(part, int) else typing.get_type_hints(kind)[part]
        if isinstance(kind, types.UnionType):  # of a dataclass and None
            kind = next(filter(dataclasses.is_dataclass, typing.get_args(kind)), kind)
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind) if field.init]
    return list(inspect.signature(kind).parameters)
