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

from space.errors import StudyError, ToolkitError

Location = tuple[str | int, ...]
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
        StudyError: With one sentence about the first mistake.
    """
    try:
        return model.model_validate(data, context=context)
    except ValidationError as error:
        raise StudyError(sentence_of(error, model, data, document)) from None


def sentence_of(error: ValidationError, model: type[BaseModel], data: Mapping[str, Any], document: Document | None = None) -> str:
    """One sentence for the first thing wrong: `file:line: key: what`, as far as these are known."""
    problems = error.errors(include_url=False)
    # An unknown key is usually the cause of the other problems, such as a missing key: report it first.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    at = _location_in_data(problem["loc"], data)
    if not at:
        return _about_whole(str(problem.get("ctx", {}).get("error", problem["msg"])), document)
    key = ".".join(str(part) for part in at)
    where = f"{document.where(at)}: " if document else ""
    kind, context = problem["type"], problem.get("ctx", {})
    cause = context.get("error")
    if isinstance(cause, ToolkitError) or kind == "value_error":
        return f"{where}{key}: {cause}"
    if kind == "extra_forbidden":
        return f"{where}unknown key '{key}'{nearest(str(at[-1]), _names(model, at[:-1]))}"
    if kind == "missing":
        return f"{where}'{key}' is missing"
    given = problem["input"]
    if kind == "literal_error":
        expected = context["expected"]
        names = [part.strip(" '") for part in expected.replace(" or ", ", ").split(",")]
        if len(names) == 1:
            return f"{where}{key}: {given!r} is not {expected}"
        return f"{where}{key}: {given!r} is not one of {expected}{nearest(str(given), names, list_known=False)}"
    message = problem["msg"]
    return f"{where}{key}: {message[0].lower()}{message[1:]}, not {given!r}"


def _about_whole(message: str, document: Document | None) -> str:
    """A message about several keys, with the line of the key that it begins with."""
    if document is None:
        return message
    leading = re.match(r"[\w.]+", message)
    return f"{document.where(tuple(leading[0].split('.')) if leading else ())}: {message}"


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


def _names(model: type[BaseModel], at: Location) -> list[str]:
    """The valid keys at a location of the model."""
    current: Any = model
    for part in at:
        if hasattr(current, "model_fields"):
            field = next((f for name, f in current.model_fields.items() if part in (name, f.alias)), None)
            current = field.annotation if field else None
        else:
            # A key of a mapping or an item of a list: the type of its value is the last argument of the type.
            current = (get_args(current) or (None,))[-1]
        if get_origin(current) in (Union, UnionType):
            current = next((member for member in get_args(current) if hasattr(member, "model_fields")), None)
    fields = getattr(current, "model_fields", {})
    return [field.alias or name for name, field in fields.items()]


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
