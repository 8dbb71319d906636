"""Who manages which fields of an object: metadata.managedFields, updates that change it, and server-side apply.

Law: pure; the time comes from outside. An entry that nothing happened to stays the object it was.

Rules: Kubernetes, apimachinery/pkg/util/managedfields and sigs.k8s.io/structured-merge-diff (merge/update.go).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from kproxy.api import field_sets, known_fields
from kproxy.api.field_sets import Fields
from kproxy.api.merge_rules import Rules
from kproxy.api.types import Object
from kproxy.errors import UserError

Entry = Mapping[str, Any]

LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
"""What kubectl's client-side apply named, as JSON."""
CLIENT_SIDE_APPLY: Final = "kubectl-client-side-apply"
"""The manager of what was applied so; kubectl takes its fields over when it begins to apply on the server."""
SERVER_SIDE_KUBECTL: Final = "kubectl"

_BEFORE_FIRST_APPLY: Final = "before-first-apply"
_ANCIENT: Final = "ancient-changes"
_MOST_UPDATERS: Final = 10  # Kubernetes: fieldmanager.DefaultMaxUpdateManagers
_LONGEST_NAME: Final = 128


class MalformedConfiguration(UserError):
    """What was applied cannot be merged."""


class Conflicts(UserError):
    """Fields that an apply would change belong to others.

    Attributes:
        fields: each field with the words for its manager.
    """

    def __init__(self, fields: Sequence[tuple[str, str]]) -> None:
        self.fields = tuple(fields)
        if len(fields) == 1:
            super().__init__(f"Apply failed with 1 conflict: conflict with {fields[0][0]}: {fields[0][1]}")
            return
        lines: list[str] = []
        for manager in sorted({manager for manager, _ in fields}):
            lines.append(f"conflicts with {manager}:")
            lines += [f"- {path}" for by, path in fields if by == manager]
        super().__init__(f"Apply failed with {len(fields)} conflicts: " + "\n".join(lines))


@dataclass(frozen=True)
class Manager:
    """Who writes.

    Attributes:
        name: up to 128 characters.
        operation: how it writes.
        api_version: of the object, as it was written.
        subresource: "" for the object itself.
    """

    name: str
    operation: Literal["Apply", "Update"]
    api_version: str
    subresource: str = ""

    def is_of(self, entry: Entry) -> bool:
        """Whether the entry is this manager's."""
        is_same = (entry.get("manager"), entry.get("operation")) == (self.name, self.operation)
        is_same_version = self.operation == "Apply" or entry.get("apiVersion") == self.api_version
        return is_same and is_same_version and entry.get("subresource", "") == self.subresource

    def entry(self, fields: Fields, time: str) -> Entry:
        """The manager's entry."""
        entry = {
            "manager": self.name,
            "operation": self.operation,
            "apiVersion": self.api_version,
            "time": time,
            "fieldsType": "FieldsV1",
            "fieldsV1": fields,
        }
        return entry | {"subresource": self.subresource} if self.subresource else entry


def name_of_client(user_agent: str) -> str:
    """The manager that a client is when it does not say: its User-Agent up to the first slash."""
    return user_agent.split("/", 1)[0][:_LONGEST_NAME]


def after_update(  # noqa: PLR0913 - everything that an entry depends on, by name
    old: Object | None, new: Object, manager: Manager, rules: Rules, *, given: Any, time: str
) -> Sequence[Entry]:
    """The entries after somebody wrote ``new`` in place of ``old``.

    Args:
        old: as it was; None when it was not there.
        new: as it is written.
        manager: who wrote.
        rules: of the object's kind.
        given: entries that came with ``new``: they count instead of the old one's, and one empty entry drops them all.
        time: now.
    """
    if given == [{}]:
        return ()
    before = () if old is None else old["metadata"].get("managedFields") or ()
    entries = given if given and given != before and _are_entries(given) else before
    changed, removed = field_sets.differences(old or {}, new, rules)
    if not changed and not removed:
        return tuple(entries)
    kept, own, first = _apart(entries, manager, changed, removed)
    fields = field_sets.union(field_sets.difference(own, removed), changed)
    if fields:
        kept.append(first if first is not None and fields == own else manager.entry(fields, time))
    return _sorted(_capped(kept))


def apply(  # noqa: PLR0913 - everything that an apply depends on, by name
    old: Object, configuration: Object, manager: Manager, rules: Rules, *, force: bool, time: str
) -> tuple[Object, Sequence[Entry]]:
    """The object after a server-side apply, and who manages it then.

    Args:
        old: as it is; its identity alone when it is not there yet.
        configuration: all that the manager wants to say about it.
        manager: who applies.
        rules: of the object's kind.
        force: take over what others manage differently.
        time: now.

    Raises:
        Conflicts: others manage what it would change, and it is not forced.
        MalformedConfiguration: items of a list cannot be told apart.
    """
    entries: Sequence[Entry] = old["metadata"].get("managedFields") or ()
    if not entries and (unmanaged := field_sets.whole(old, rules)):
        before = Manager(_BEFORE_FIRST_APPLY, "Update", manager.api_version)
        entries = (before.entry(unmanaged, time),)
    last = next((entry for entry in entries if manager.is_of(entry)), None)
    fields = field_sets.named_by(configuration, rules)
    merged = _merged(old, configuration, rules, "")
    if last is not None:
        owned = fields
        for entry in entries:
            owned = field_sets.union(owned, entry["fieldsV1"]) if entry is not last else owned
        merged = field_sets.without(merged, field_sets.abandoned(last["fieldsV1"], owned), rules)
    changed, removed = field_sets.differences(old, merged, rules)
    if not force:
        _check_conflicts(old, entries, manager, changed, rules)
    kept = _apart(entries, manager, changed, removed)[0]
    if fields:
        is_as_before = last is not None and last["fieldsV1"] == fields
        kept.append(last if last is not None and is_as_before else manager.entry(fields, time))
    return merged, _sorted(kept)


def _check_conflicts(old: Object, entries: Iterable[Entry], manager: Manager, changed: Fields, rules: Rules) -> None:
    others = [entry for entry in entries if not manager.is_of(entry)]
    if manager.name == SERVER_SIDE_KUBECTL and (allowed := _applied_by_client(old, rules)):
        changed = field_sets.difference(changed, allowed)
    found = [
        (_words(entry), path)
        for entry in others
        for path in field_sets.paths(field_sets.intersection(entry["fieldsV1"], changed))
    ]
    if found:
        raise Conflicts(found)


def _applied_by_client(old: Object, rules: Rules) -> Fields:
    """What kubectl applied from the client and nobody has changed since: its server-side apply may change that."""
    text = (old["metadata"].get("annotations") or {}).get(LAST_APPLIED, "")
    try:
        applied = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return {}
    if not isinstance(applied, dict) or known_fields.check(applied):
        return {}
    changed, removed = field_sets.differences(applied, old, rules)
    fields = field_sets.difference(field_sets.named_by(applied, rules), field_sets.union(changed, removed))
    annotation: Fields = {"f:metadata": {"f:annotations": {f"f:{LAST_APPLIED}": {}}}}
    return field_sets.union(fields, annotation)


def _words(entry: Entry) -> str:
    words = f'"{entry["manager"]}"'
    if entry.get("subresource"):
        words += f' with subresource "{entry["subresource"]}"'
    return words if entry["operation"] == "Apply" else f"{words} using {entry['apiVersion']}"


def _apart(
    entries: Iterable[Entry], manager: Manager, changed: Fields, removed: Fields
) -> tuple[list[Entry], Fields, Entry | None]:
    """The others' entries without what was taken from them; the manager's own fields and entry."""
    kept: list[Entry] = []
    own: Entry | None = None
    for entry in entries:
        if manager.is_of(entry):
            own = entry
            continue
        fields = field_sets.difference(field_sets.difference(entry["fieldsV1"], changed), removed)
        if fields:
            kept.append(entry if fields is entry["fieldsV1"] else {**entry, "fieldsV1": fields})
    return kept, {} if own is None else own["fieldsV1"], own


def _capped(entries: Sequence[Entry]) -> Sequence[Entry]:
    """No more than ten updaters: the oldest become one."""
    updaters = sorted(
        (entry for entry in entries if entry["operation"] == "Update" and not entry.get("subresource")),
        key=lambda entry: (entry["manager"] != _ANCIENT, entry.get("time", "")),
    )
    excess = updaters[: len(updaters) - _MOST_UPDATERS + 1] if len(updaters) > _MOST_UPDATERS else []
    if not excess:
        return entries
    fields: Fields = {}
    for entry in excess:
        fields = field_sets.union(fields, entry["fieldsV1"])
    ancient = {**excess[-1], "manager": _ANCIENT, "fieldsV1": fields}
    return [*(entry for entry in entries if entry not in excess), ancient]


def _sorted(entries: Iterable[Entry]) -> Sequence[Entry]:
    names = ("operation", "time", "manager", "apiVersion", "subresource")
    return sorted(entries, key=lambda entry: tuple(entry.get(name, "") for name in names))


def _are_entries(given: Any) -> bool:
    return isinstance(given, list) and all(
        isinstance(entry, dict)
        and entry.get("operation") in ("Apply", "Update")
        and isinstance(entry.get("manager"), str)
        and isinstance(entry.get("apiVersion"), str)
        and isinstance(entry.get("fieldsV1"), dict)
        and _is_set(entry["fieldsV1"])
        for entry in given
    )


def _is_set(fields: Any) -> bool:
    return isinstance(fields, dict) and all(
        (key == "." or key[:2] in ("f:", "k:", "v:", "i:")) and _is_set(below) for key, below in fields.items()
    )


# ----- merging


def _merged(live: Any, applied: Any, rules: Rules, path: str) -> Any:
    if isinstance(applied, list):
        return _merged_list(live, applied, rules, path)
    if not isinstance(applied, dict) or rules.is_atomic:
        return applied
    merged = dict(live) if isinstance(live, dict) else {}
    for name, value in applied.items():
        if value is not None:
            merged[name] = _merged(merged.get(name), value, rules.field(name), f"{path}.{name}")
    return merged


def _merged_list(live: Any, applied: Sequence[Any], rules: Rules, path: str) -> Any:
    if field_sets.is_one_value(applied, rules):
        return applied
    wanted = field_sets.items_by_key(applied, rules)
    if wanted is None:
        raise MalformedConfiguration(f"{path}: {_blemish(applied, rules)}")
    present = field_sets.items_by_key(live, rules) if isinstance(live, list) else {}
    if present is None:
        return applied
    return [
        _merged(present.get(key), wanted[key], rules.item, path) if key in wanted else present[key]
        for key in _interleaved(list(present), list(wanted))
    ]


def _blemish(items: Sequence[Any], rules: Rules) -> str:
    seen: set[str] = set()
    for item in items:
        found = field_sets.items_by_key([item], rules)
        if found is None:
            break
        key = next(iter(found))
        if key in seen:
            return f"duplicate entries for key {next(field_sets.paths(found | {key: {}}))}"
        seen.add(key)
    return f"associative list with keys has an element that omits all key fields {list(rules.list_keys)}"


def _interleaved(present: Sequence[str], wanted: Sequence[str]) -> Iterator[str]:
    """All keys once: the wanted ones in their order, the others where they stand before what follows them."""
    shared = [key for key in wanted if key in present]
    told = 0
    for key in present:
        if key not in wanted:
            yield key
        elif shared and key == shared[0]:
            shared.pop(0)
            until = wanted.index(key) + 1
            yield from wanted[told:until]
            told = until
    yield from wanted[told:]
