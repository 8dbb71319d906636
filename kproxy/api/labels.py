"""Label and field selectors: which objects a Service, a controller or a list request means.

Kubernetes: apimachinery/pkg/labels/selector.go and pkg/fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kproxy.api.field_errors import quoted
from kproxy.api.types import LabelSelector, LabelSelectorRequirement, Object
from kproxy.errors import UserError

LabelPredicate = Callable[[Mapping[str, str]], bool]
ObjectPredicate = Callable[[Object], bool]


def matches(selector: LabelSelector | Mapping[str, str] | None, labels: Mapping[str, str]) -> bool:
    """Whether labels fit a selector.

    Args:
        selector: a LabelSelector (all of its requirements must hold; an empty one fits everything), or a Service's
            plain map of labels that must be equal. None fits nothing. A Service's empty map is the caller's to treat
            as None.
        labels: of the object in question.
    """
    if selector is None:
        return False
    if isinstance(selector, LabelSelector):
        return _equal(selector.match_labels, labels) and all(
            _holds(expression, labels) for expression in selector.match_expressions
        )
    return _equal(selector, labels)


def parse_selector(text: str) -> LabelPredicate:
    """The predicate of ``kubectl -l``'s syntax: ``app=web,tier!=db,zone in (a,b),!old,rank>3``; empty fits everything.

    Raises:
        UserError: the text is no label selector.
    """
    requirements = [_parsed_requirement(part, text) for part in _parts(text)]
    return lambda labels: all(_holds(requirement, labels) for requirement in requirements)


def parse_field_selector(text: str, selectable: Mapping[str, tuple[str, ...]]) -> ObjectPredicate:
    """The predicate of ``--field-selector``: terms ``field=value``, ``==`` or ``!=`` joined by commas, all must hold.

    A field that an object does not have counts as empty, and as ``false`` where that is asked for.

    Args:
        text: the selector.
        selectable: the fields that the kind can be selected by, and where objects have them.

    Raises:
        UserError: a term has no operator, or the field cannot be selected by.
    """
    terms = [_parsed_term(part, text, selectable) for part in text.split(",") if part.strip()]
    return lambda obj: all((_field(obj, term.path) == term.value) is not term.is_negated for term in terms)


def metadata_name(text: str) -> str:
    """The one name that a field selector can select, by ``metadata.name=NAME``; empty when it leaves that open."""
    matches = map(_TERM.fullmatch, text.split(","))
    return next((match[3] for match in matches if match and match[1] == "metadata.name" and match[2] != "!="), "")


@dataclass(frozen=True)
class _Term:
    path: tuple[str, ...]
    value: str
    is_negated: bool


def _parsed_term(part: str, text: str, selectable: Mapping[str, tuple[str, ...]]) -> _Term:
    match = _TERM.fullmatch(part)
    if match is None:
        raise UserError(f"invalid field selector {quoted(text)}: can't understand {quoted(part)}")
    name, operator, value = match.groups()
    if name not in selectable:
        raise UserError(f"field label not supported: {name}")
    return _Term(selectable[name], "" if value == "false" else value, operator == "!=")


def _field(obj: Object, path: tuple[str, ...]) -> str:
    value: Any = obj
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return "" if value is None or value is False else "true" if value is True else str(value)


def _equal(wanted: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in wanted.items())


def _holds(requirement: LabelSelectorRequirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value in requirement.values
        case "NotIn":
            return value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt":
            return _is_integer(value) and int(str(value)) > int(requirement.values[0])
        case "Lt":
            return _is_integer(value) and int(str(value)) < int(requirement.values[0])
        case _:
            return False  # validation refuses other operators; one that slips through selects nothing


def _is_integer(value: str | None) -> bool:
    return value is not None and _INTEGER.fullmatch(value) is not None


_TERM: Final = re.compile(r"\s*([^=!\s]+)\s*(==|!=|=)\s*(\S*)\s*")
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,18}")
_KEY: Final = r"([A-Za-z0-9][-A-Za-z0-9_./]*)"
_SET: Final = re.compile(rf"{_KEY}\s+(in|notin)\s*\(([^()]*)\)")
_COMPARISON: Final = re.compile(rf"{_KEY}\s*(==|=|!=|>|<)\s*([-A-Za-z0-9_.]*)")
_EXISTENCE: Final = re.compile(rf"(!?)\s*{_KEY}")
_VALUE: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_OPERATORS: Final = {"=": "In", "==": "In", "!=": "NotIn", ">": "Gt", "<": "Lt"}


def _parts(text: str) -> Iterator[str]:
    if not text.strip():
        return
    # Commas inside parentheses belong to a set of values.
    for part in re.split(r",(?![^(]*\))", text):
        yield part.strip()


def _parsed_requirement(part: str, text: str) -> LabelSelectorRequirement:
    requirement = _requirement(part)
    if requirement is None:
        raise UserError(f"unable to parse label selector {quoted(text)}: can't understand {quoted(part)}")
    return requirement


def _requirement(part: str) -> LabelSelectorRequirement | None:
    if match := _SET.fullmatch(part):
        values = tuple(value.strip() for value in match[3].split(","))
        is_valid = all(_VALUE.fullmatch(value) for value in values)
        operator = "In" if match[2] == "in" else "NotIn"
        return LabelSelectorRequirement(match[1], operator, values) if is_valid else None
    if match := _COMPARISON.fullmatch(part):
        operator, value = _OPERATORS[match[2]], match[3]
        is_valid = _is_integer(value) if operator in ("Gt", "Lt") else _VALUE.fullmatch(value) is not None
        return LabelSelectorRequirement(match[1], operator, (value,)) if is_valid else None
    if match := _EXISTENCE.fullmatch(part):
        return LabelSelectorRequirement(match[2], "DoesNotExist" if match[1] else "Exists")
    return None
