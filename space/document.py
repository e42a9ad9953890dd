"""YAML documents that know the line of every key, and one-sentence messages for mistakes in them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from space.errors import Location, Mistakes, StudyError

Model = TypeVar("Model", bound=BaseModel)


class Document:
    """Plain data read from YAML text, with a line number (from 1) for every key and item.

    Raises StudyError when the text is not YAML, holds a key twice, or is no mapping.
    """

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self._lines: dict[Location, int] = {}
        self._below: list[Document] = []
        """The documents that this one extends, nearest first."""
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            self.data: dict[str, Any] = yaml.safe_load(text)
            if isinstance(node, yaml.MappingNode):
                self._index(node, ())
        except yaml.YAMLError as error:
            raise StudyError(f"{name}: {_yaml_problem(error)}") from None
        except StudyError:
            raise
        except (ValueError, TypeError, RecursionError) as error:
            raise StudyError(f"{name}: holds a value that is not plain data ({error})") from None
        if not isinstance(node, yaml.MappingNode):
            raise StudyError(f"{name}: expected a mapping of keys to values at the top level")

    @classmethod
    def read(cls, path: Path) -> Document:
        """The document in a file; raises StudyError when it cannot be read."""
        try:
            return cls(path.read_text(encoding="utf-8"), str(path))
        except FileNotFoundError:
            raise StudyError(f"{path}: no such file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise StudyError(f"{path}: cannot be read as text ({error})") from None

    @classmethod
    def read_extended(cls, path: Path, key: str = "extends") -> Document:
        """The document in a file, merged over the file that its `extends` names, and so on.

        Args:
            path: The file to read.
            key: The key that names the file to extend, relative to the file that holds the key.

        Raises:
            StudyError: When a file cannot be read, or files extend each other in a circle.
        """
        document, seen = cls.read(path), [path.resolve()]
        newest = document
        while (name := newest.data.pop(key, None)) is not None:
            if not isinstance(name, str):
                raise StudyError(f"{newest.where((key,))}: {key} is the path of another study, not {name!r}")
            file = seen[-1].parent / name
            if file.resolve() in seen:
                raise StudyError(f"{newest.where((key,))}: {name} extends this file in turn; remove one of the two")
            if not file.is_file():
                raise StudyError(f"{newest.where((key,))}: there is no file {name} beside it to extend")
            newest = cls.read(file)
            seen.append(file.resolve())
            document._merge_over(newest, key)
        return document

    def _merge_over(self, base: Document, key: str) -> None:
        """Merge this document over a base without its `key`: mappings are merged, all other values replaced."""
        self.data = _merged({name: value for name, value in base.data.items() if name != key}, self.data)
        self._below.append(base)

    def _index(self, node: yaml.Node, at: Location) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if not isinstance(key.value, str):
                    raise StudyError(f"{self.name}:{key.start_mark.line + 1}: a key must be plain text")
                where: Location = (*at, key.value)
                line = key.start_mark.line + 1
                if where in self._lines:
                    first = self._lines[where]
                    raise StudyError(f"{self.name}:{line}: key '{key.value}' appears twice (first in line {first}); remove one")
                self._lines[where] = line
                self._index(value, where)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self._lines[(*at, index)] = value.start_mark.line + 1
                self._index(value, (*at, index))

    def where(self, at: Location) -> str:
        """`file:line` of a location, or of the nearest enclosing key in this document or in one that it extends."""
        for end in range(len(at), 0, -1):
            for document in (self, *self._below):
                line = document._lines.get(at[:end])
                if line is not None:
                    return f"{document.name}:{line}"
        return self.name


def _merged(base: Any, over: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    return {**base, **{key: _merged(base[key], value) if key in base else value for key, value in over.items()}}


def parse(model: type[Model], data: Mapping[str, Any], document: Document | None = None, context: Any = None) -> Model:
    """Plain data as a validated model.

    Args:
        model: The pydantic model.
        data: The plain data.
        document: The document that the data were read from, for line numbers in the message.
        context: What the model's validators are given, such as the header of a study's data.

    Raises:
        Mistakes: With one sentence about the first mistake, and all that were found.
    """
    try:
        return model.model_validate(data, context=context)
    except ValidationError as error:
        raise Mistakes(mistakes_of(error, model, data, document)) from None


def sentence_of(error: ValidationError, model: type[BaseModel], data: Mapping[str, Any], document: Document | None = None) -> str:
    """One sentence for the first thing wrong: `file:line: key: what`, as far as these are known."""
    return mistakes_of(error, model, data, document)[0][1]


def mistakes_of(
    error: ValidationError, model: type[BaseModel], data: Mapping[str, Any], document: Document | None = None
) -> list[tuple[Location, str]]:
    """The location and a sentence of every mistake; unknown keys come first, for they often are the cause of the others."""
    grouped: dict[Location, list[Any]] = {}
    for problem in error.errors(include_url=False):
        grouped.setdefault(_location_in_data(problem["loc"], data), []).append(problem)
    found: list[tuple[Location, str]] = []
    unknown = {at for at, problems in grouped.items() if problems[0]["type"] == "extra_forbidden"}
    for at, problems in grouped.items():
        # Of a value or a list of values, the one that was meant tells what is wrong; the other only that it is none.
        if any(len(other) > len(at) and other[: len(at)] == at for other in grouped) and problems[0]["type"] not in _WHOLE:
            continue
        for where, what in _sentences(at, _meant(problems), model):
            # A validator may have moved values, such as the keys of a single block under `blocks`.
            within = _location_in_data(where, data)
            where = within if _is_in(within, data) and not _is_in(where, data) else where
            found.append((where, f"{document.where(where)}: {what}" if document else what))
    return sorted(found, key=lambda mistake: mistake[0] not in unknown)


_WHOLE = ("value_error", "extra_forbidden", "missing")
"""Kinds of problems that no problem below their location explains."""


def _meant(problems: Sequence[Any]) -> Any:
    """Of the problems that the members of a union have with one value, the one of the member that was meant."""
    return min(problems, key=lambda problem: problem["type"] in ("tuple_type", "list_type", "dict_type", "model_type"))


def _sentences(at: Location, problem: Any, model: type[BaseModel]) -> list[tuple[Location, str]]:
    """The mistakes behind one problem of pydantic's, as pairs of a location and a sentence."""
    kind, cause = problem["type"], problem.get("ctx", {}).get("error")
    key = ".".join(str(part) for part in at)
    prefix = f"{key}: " if key else ""
    if isinstance(cause, Mistakes):
        return [((*at, *below), f"{prefix}{what}") for below, what in cause.each]
    if not at:
        # About several keys: it begins with one of them.
        message = str(cause or problem["msg"])
        leading = re.match(r"[\w.]+", message)
        return [(tuple(leading[0].split(".")) if leading else (), message)]
    if kind == "extra_forbidden":
        owner = _model_at(model, at[:-1])
        today = getattr(owner, "renamed", {}).get(at[-1])
        if today:
            return [(at, f"{key} is now called {'.'.join(str(part) for part in (*at[:-1], today))}; rename it")]
        return [(at, f"unknown key '{key}'{nearest(str(at[-1]), _names(owner))}")]
    if kind == "missing":
        return [(at, f"'{key}' is missing")]
    return [(at, f"{prefix}{_what(problem)}")]


def reason(error: ValidationError, given: Any) -> str:
    """What is wrong with a single value: the part of a sentence after its key."""
    problems = error.errors(include_url=False)
    deepest = max(len(problem["loc"]) for problem in problems)
    listed = isinstance(given, (list, tuple))
    return _what(_meant([problem for problem in problems if not listed or len(problem["loc"]) == deepest]))


def _what(problem: Any) -> str:
    kind, given, context = problem["type"], problem["input"], problem.get("ctx", {})
    if "error" in context:
        return str(context["error"])
    if kind == "literal_error":
        expected = context["expected"]
        names = [part.strip(" '") for part in expected.replace(" or ", ", ").split(",")]
        if len(names) == 1:
            return f"{given!r} is not {expected}"
        return f"{given!r} is not one of {expected}{_nearest_number(given, names) or nearest(str(given), names, list_known=False)}"
    if kind in ("tuple_type", "list_type"):
        return f"{given!r} is no list; write [{given}]" if isinstance(given, (str, int, float)) else f"{given!r} is no list"
    message = problem["msg"]
    return f"{message[0].lower()}{message[1:]}, not {given!r}"


def _nearest_number(given: Any, names: Sequence[str]) -> str:
    if isinstance(given, bool) or not isinstance(given, int | float) or not all(name.isdecimal() for name in names):
        return ""
    return f"; the nearest is {min(names, key=lambda name: abs(int(name) - given))}"


def _location_in_data(loc: Location, data: Mapping[str, Any]) -> Location:
    """pydantic's location of a problem, without the names of union members that it inserts between the keys."""
    kept: Location = ()
    inner: Any = data
    for position, part in enumerate(loc):
        in_mapping = isinstance(inner, Mapping) and part in inner
        if in_mapping or (isinstance(inner, (list, tuple)) and isinstance(part, int) and part < len(inner)):
            inner = inner[part]
        elif position < len(loc) - 1 or "[" in str(part):
            continue
        kept = (*kept, part)
    return kept


def _is_in(at: Location, data: Any) -> bool:
    """Whether there is a value at a location."""
    try:
        for part in at:
            data = data[part]
    except (KeyError, IndexError, TypeError):
        return False
    return True


def _model_at(model: type[BaseModel], at: Location) -> Any:
    """The model that holds the keys at a location; None where that is no model."""
    current: Any = model
    for part in at:
        if hasattr(current, "model_fields"):
            field = next((f for name, f in current.model_fields.items() if part in (name, f.alias)), None)
            current = field.annotation if field else None
        else:
            # A key of a mapping or an item of a list: the type of its value is the last argument of the type.
            current = next((inner for inner in reversed(get_args(current)) if inner is not Ellipsis), None)
        if get_origin(current) in (Union, UnionType):
            current = next((member for member in get_args(current) if hasattr(member, "model_fields")), None)
    return current


def _names(model: Any) -> list[str]:
    """The keys of a model; none where it is no model."""
    return [field.alias or name for name, field in getattr(model, "model_fields", {}).items()]


def nearest(given: str, known: Sequence[str], list_known: bool = True) -> str:
    """The end of a message about an unknown name: `; did you mean 'x'?`, or the known names when none is similar."""
    close = difflib.get_close_matches(given, known, n=1)
    if close and close[0] != given:
        return f"; did you mean '{close[0]}'?"
    return f"; known here: {', '.join(known)}" if known and list_known else ""


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error)
    return f"not valid YAML at line {mark.line + 1}: {what}" if mark else f"not valid YAML: {what}"
