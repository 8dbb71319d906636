"""The manifest reader: what becomes of text, and where each field stands."""

import json
import resource

import pytest

from kproxy.api.field_errors import invalid
from kproxy.api.manifest import MAX_FILE_BYTES, MAX_OBJECT_BYTES, Document, duplicates, identity, read, subject
from kproxy.api.validation import prepare

SERVICE = """\
# a comment
apiVersion: v1
kind: Service
metadata:
  name: web
  annotations:
    a.b/c: x
spec:
  ports:
    - port: 80
      nodePort: 30000
    - {port: 81}
"""


def only(text: str | bytes, file: str = "x.yaml") -> Document:
    documents, findings = read(text if isinstance(text, bytes) else text.encode(), file)
    assert findings == []
    (document,) = documents
    return document


def reasons(text: str | bytes, file: str = "x.yaml") -> list[str]:
    _, findings = read(text if isinstance(text, bytes) else text.encode(), file)
    return [f"{finding.line}: {finding.reason}" for finding in findings]


@pytest.mark.parametrize(
    ("field", "line"),
    [
        ("apiVersion", 2),
        ("metadata.name", 5),
        ("metadata.annotations[a.b/c]", 7),
        ("spec.ports", 9),
        ("spec.ports[0]", 10),
        ("spec.ports[0].nodePort", 11),
        ("spec.ports[1].port", 12),
        ("spec.ports[1].protocol", 12),
        ("spec.ports[7].port", 9),
        ("spec.selector[app]", 8),
        ("status.loadBalancer", 2),
        ("", 2),
    ],
)
def test_every_field_knows_its_line_or_that_of_its_nearest_parent(field: str, line: int) -> None:
    assert only(SERVICE).origin.line_of(field) == line


def test_the_plural_is_found_where_the_singular_is_written() -> None:
    document = only("kind: Service\nspec:\n  type: ClusterIP\n  clusterIP: 1.2.3.4\n")
    assert document.origin.line_of("spec.clusterIPs[0]") == 4


def test_json_gives_the_same_object_and_lines_when_asked() -> None:
    obj = only(SERVICE).obj
    document = only(json.dumps(obj, indent=1), "x.json")
    assert document.obj == obj
    assert document.origin.line_of("spec.ports[0].port") == 13
    assert document.origin.line_of("spec.ports[9]") == 11


def test_an_escaped_surrogate_pair_is_read_and_stands_on_the_first_line() -> None:
    document = only('{"a":\n "\\ud83d\\ude00"}', "x.json")
    assert document.obj == {"a": "\U0001f600"}
    assert document.origin.line_of("a") == 1


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("80", 80),
        ("-1", -1),
        ("0644", 420),
        ("0o17", 15),
        ("0x1F", 31),
        ("0b101", 5),
        ("1_000", 1000),
        ("089", 89),
        ("80.0", 80),
        ("1e3", 1000),
        ("1.5", 1.5),
        (".5", 0.5),
        ("18446744073709551616", 18446744073709551616.0),
        ("yes", True),
        ("off", False),
        ("n", False),
        ("~", None),
        ("", None),
        ("1:30", "1:30"),
        ("2001-01-01", "2001-01-01"),
        ("1.2.3.4", "1.2.3.4"),
        ("500m", "500m"),
        ('"80"', "80"),
        ("'yes'", "yes"),
        ("-", "-"),
        ("+", "+"),
        (".", "."),
    ],
)
def test_plain_scalars_mean_what_kubectl_takes_them_for(scalar: str, value: object) -> None:
    if scalar == "-":
        scalar = "'-'"
    read_value = only(f"a: {scalar}").obj["a"]
    assert read_value == value
    assert type(read_value) is type(value)


def test_keys_become_text() -> None:
    assert only("{1: a, true: b, 1.5: c, 'x': d}").obj == {"1": "a", "true": "b", "1.5": "c", "x": "d"}


def test_documents_keep_their_order_and_empty_ones_are_passed_over() -> None:
    documents, findings = read(b"---\n---\na: 1\n---\n# nothing\n---\nb: 2\n...\n", "x.yaml")
    assert findings == []
    assert [(document.obj, document.origin.line) for document in documents] == [({"a": 1}, 3), ({"b": 2}, 7)]


def test_lists_are_unrolled_and_items_keep_their_lines() -> None:
    text = b"apiVersion: v1\nkind: List\nitems:\n- kind: Pod\n  metadata:\n    name: a\n- kind: Node\n  metadata: {}\n"
    documents, findings = read(text, "x.yaml")
    assert findings == []
    assert [document.obj["kind"] for document in documents] == ["Pod", "Node"]
    assert [document.origin.line for document in documents] == [4, 7]
    assert documents[0].origin.line_of("metadata.name") == 6
    assert documents[1].origin.line_of("metadata.name") == 8


def test_items_of_a_json_list_find_their_lines_when_asked() -> None:
    items = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}} for name in "ab"]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=1)
    documents, _ = read(text.encode(), "x.json")
    assert [document.origin.line_of("") for document in documents] == [5, 12]
    assert documents[1].origin.line_of("metadata.name") == 16
    assert documents[1].origin.line_of("spec.ports") == 12


def test_items_of_a_typed_list_get_the_kind_that_the_list_names() -> None:
    text = b'{"apiVersion": "v1", "kind": "ServiceList", "items": [{"metadata": {"name": "a"}}]}'
    assert only(text, "x.json").obj == {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}}


def test_aliases_and_merge_keys_are_written_out_and_not_shared() -> None:
    obj = only("a: &x {p: 1, q: [1]}\nb: {<<: *x, p: 2}\nc: [*x, *x]\n").obj
    assert obj["b"] == {"p": 2, "q": [1]}
    assert obj["c"] == [{"p": 1, "q": [1]}] * 2
    assert obj["c"][0] is not obj["c"][1]


def test_a_byte_order_mark_is_no_junk() -> None:
    assert only(b"\xef\xbb\xbfa: 1").obj == {"a": 1}


ALIAS_BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{level}: &a{level} [{','.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "0: no objects in this file"),
        ("# only\n---\n", "0: no objects in this file"),
        ("[]", "1: a Kubernetes object must be a mapping, not a list"),
        ("hello", "1: a Kubernetes object must be a mapping, not a string"),
        ("\n3", "2: a Kubernetes object must be a mapping, not the value 3"),
        ("a: 1\nb: 2\na: 3", '3: key "a" already set in map'),
        ('{"a": 1,\n "a": 2}', '2: key "a" already set in map'),
        ("a: {b: [1, 2}", "1: not YAML: while parsing a flow sequence, did not find expected ',' or ']'"),
        ("a: b: c", "1: not YAML: mapping values are not allowed in this context"),
        ("a:\n\t- b", "2: not YAML: while scanning for the next token, found character that cannot start any token"),
        ("a: 1\n---\na: *b", '3: unknown anchor "b" referenced'),
        ("a: &a [*a]", '1: anchor "a" value contains itself'),
        (ALIAS_BOMB, "5: document contains excessive aliasing"),
        ("a: !!python/object/apply:os.system [id]", "1: YAML tags are not allowed: "),
        ("a: !!str 80", "1: YAML tags are not allowed: tag:yaml.org,2002:str"),
        ("a: !secret x", "1: YAML tags are not allowed: !secret"),
        ("[" * 5000, "1: nested more than 100 deep"),
        ("- " * 200 + "x", "1: nested more than 100 deep"),
        ("{" * 200, "1: a key must be text"),
        ("? [a]\n: b", "1: a key must be text"),
        ("~: b", "1: a key must be text"),
        ("a: .inf", "1: .inf is not a number that an object can hold"),
        ("a: 1e999", "1: the number is too large"),
        ("<<: 3", "1: map merge requires map or sequence of maps as the value"),
        ('{"a": "\\ud800"}', "1: holds a number of more than 64 bits or a character that is not Unicode"),
    ],
)
def test_text_that_is_no_manifest_says_why_and_where(text: str, reason: str) -> None:
    assert any(found.startswith(reason) for found in reasons(text)), reasons(text)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a: &a [" + "x," * 100_000 + "]\nb: [" + "*a," * 50_000 + "]", id="a list of a billion letters"),
        pytest.param("a: &a {" + "k: 1," + "l: {" * 9 + "}" * 9 + "}\nb: [" + "*a," * 99_000 + "]", id="mappings"),
        pytest.param(
            "a: &a {" + "".join(f"k{i}: 1," for i in range(50_000)) + "}\nb:\n" + "- {<<: *a}\n" * 50_000, id="<<"
        ),
        pytest.param(f"a: &a {'x' * 1_000_000}\nb: [" + "*a," * 90_000 + "]", id="one long text"),
        pytest.param(f"? &a {'x' * 1_000_000}\n: 1\nb:\n" + "- {*a : 1}\n" * 50_000, id="one long key"),
        pytest.param("a: &a x\nb:\n" + "- *a\n" * 3_000_000, id="fifteen megabytes of aliases"),
    ],
)
def test_aliases_are_counted_by_what_they_add(text: str) -> None:
    """Each of these would take gigabytes; with the bound the reader gives up after a few megabytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (reason,) = reasons(text)
    assert reason.endswith("document contains excessive aliasing: aliases may add at most 100000 values to a file")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"\x00\x01\x02", "1: not a text file: it has NUL characters"),
        (b"a: 1\n\xff\xfe", "2: not a text file: byte 5 is not UTF-8"),
        (b"\x7fELF\x02\x01\x01" + b"\x00" * 9, "1: not a text file: it has NUL characters"),
        (b"a: 1\nb: \x07", "2: not YAML: control characters are not allowed"),
    ],
)
def test_binary_junk_is_named_as_such(text: bytes, reason: str) -> None:
    assert reasons(text) == [reason]


def test_errors_of_a_json_file_are_those_of_json() -> None:
    assert reasons('{"a":\n }', "x.json") == ["2: not JSON: Expecting value"]
    assert reasons("[" * 100_000, "x.json") == ["1: nested more than 100 deep"]
    assert reasons('{"a":' * 150 + "1" + "}" * 150, "x.json") == ["1: nested more than 100 deep"]


def test_the_documents_before_a_syntax_error_are_still_there() -> None:
    documents, findings = read(b"a: 1\n---\nb: {", "x.yaml")
    assert [document.obj for document in documents] == [{"a": 1}]
    assert [finding.line for finding in findings] == [3]


def test_a_file_of_50_mb_is_refused_before_it_is_read() -> None:
    (reason,) = reasons(b"a" * 50_000_000)
    assert reason == f"0: the file is too large: 50000000 bytes, at most {MAX_FILE_BYTES} are read"


def test_the_limit_of_a_file_is_the_callers() -> None:
    documents, findings = read(b"a: 1", "x.yaml", max_bytes=3)
    assert documents == []
    assert findings[0].reason == "the file is too large: 4 bytes, at most 3 are read"


def test_an_object_of_more_than_3_mb_is_refused_by_name() -> None:
    text = "kind: Pod\nmetadata:\n  name: a\n  annotations: {x: " + "y" * MAX_OBJECT_BYTES + "}\n"
    _, (finding,) = read(text.encode(), "x.yaml")
    assert finding.subject == 'Pod "a"'
    assert finding.reason.startswith("the object is too large: ")


def test_findings_name_file_line_object_field_and_reason() -> None:
    document = only(SERVICE)
    (finding,) = document.findings([invalid("spec.ports[0].nodePort", 1, "no")])
    assert str(finding) == 'x.yaml:11: Service "web": spec.ports[0].nodePort: Invalid value: 1: no'


@pytest.mark.parametrize(
    ("obj", "expected"),
    [
        ({"kind": "Service", "metadata": {"name": "a", "namespace": "n"}}, 'Service "n/a"'),
        ({"kind": "Node", "metadata": {"name": "a"}}, 'Node "a"'),
        ({"kind": "Pod", "metadata": {"generateName": "a-"}}, 'Pod "a-"'),
        ({"kind": "Pod", "metadata": {"name": "a\x1b[2J"}}, 'Pod "a\\x1b[2J"'),
        ({"kind": "Pod", "metadata": [1]}, "Pod"),
        ({"kind": 3}, ""),
        ({}, ""),
    ],
)
def test_subjects(obj: dict[str, object], expected: str) -> None:
    assert subject(obj) == expected


def service(name: str, namespace: str | None = None, api_version: str = "v1", kind: str = "Service") -> str:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return json.dumps({"apiVersion": api_version, "kind": kind, "metadata": metadata})


def test_two_documents_of_one_name_are_found_and_the_first_is_named() -> None:
    text = "\n---\n".join([service("a"), service("b"), service("a", "default"), service("a", "other")])
    documents, _ = read(text.encode(), "x.yaml")
    ((index, error),) = duplicates(documents)
    assert index == 2
    assert error.message() == 'metadata.name: Duplicate value: "a": the same object is already at x.yaml:1'


def test_kinds_and_namespaces_tell_names_apart_but_versions_do_not() -> None:
    assert identity(json.loads(service("a"))) != identity(json.loads(service("a", kind="Pod")))
    node = json.loads(service("a", kind="Node"))
    assert identity(node) == identity({**node, "metadata": {"name": "a", "namespace": "n"}})
    assert identity({"kind": "Pod", "metadata": {}}) is None


def test_enormous_keys_are_answered_at_once() -> None:
    for letter in "[.":
        key = letter * 1_000_000
        document = only(json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {key: 1}}))
        assert document.origin.line_of(f"spec.{key}") == 1


def test_an_object_full_of_errors_is_answered_soon_with_a_bounded_number_of_them() -> None:
    document = only(
        json.dumps({"apiVersion": "v1", "kind": "Pod", "spec": {f"container{i}": 1 for i in range(100_000)}})
    )
    _, errors = prepare(document.obj)
    assert len(errors) == 1000
