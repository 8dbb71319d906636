"""The pages that repeat what the code says repeat it rightly."""

from __future__ import annotations

import re
from pathlib import Path

from kproxy.api import manifest
from kproxy.cli.group import VERBS
from kproxy.cluster import clusterfile
from kproxy.cluster.rights import RULES
from netns.sysctl import SYSCTLS
from netns.topology import Role

ROOT = Path(__file__).resolve().parents[1]


def test_sysctl_page_is_the_table() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "docs" / "sysctls.md").read_text().splitlines()
        if line.startswith("| net.")
    ]
    roles = [Role.NODE, Role.ROUTER, Role.CLIENT, Role.POD, Role.FABRIC]
    told = {
        role: {key: row[column] for row in rows for key in _keys(row[0]) if row[column]}
        for column, role in enumerate(roles, start=1)
    }
    assert told == {role: dict(SYSCTLS[role]) for role in roles}


def _keys(cell: str) -> list[str]:
    return [cell.replace("*", scope) for scope in ("all", "default", "lo")] if "*" in cell else [cell]


def test_cluster_file_page_shows_the_defaults() -> None:
    page = (ROOT / "docs" / "cluster-file.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    documents, findings = manifest.read(example.encode(), "cluster-file.md")
    assert not findings
    assert clusterfile.read(documents) == clusterfile.read([])


def test_rights_page_is_the_table() -> None:
    text = (ROOT / "docs" / "api.md").read_text().partition("## Rights")[2]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    told = [(role, *(tuple(cell.split(", ")) for cell in cells), whose) for role, *cells, whose in rows[1:]]
    assert told == [
        (role.value, rule.resources, rule.verbs, rule.of.value) for role, rules in RULES.items() for rule in rules
    ]


def test_changelog_and_readme_name_every_verb() -> None:
    text = (ROOT / "README.md").read_text() + (ROOT / "CHANGELOG.md").read_text()
    assert [verb for verb in VERBS if not re.search(rf"\b{verb}\b", text)] == []
