"""What the node proxy tells arrives in the API, and never holds the proxy up."""

from __future__ import annotations

import threading
import time

import pytest
from running_cluster import Api, eventually

from kproxy.api.kinds import EVENT, EVENT_OF_GROUP
from kproxy.api.types import Object
from kproxy.client import Client
from kproxy.proxy.events import no_health_check, starting
from kproxy.proxy.services import ServiceName
from kproxy.proxy.sources.api_events import WAITING, EventWriter

EDGE = ServiceName("default", "edge")


def test_events_arrive_in_kube_proxys_words(api: Api) -> None:
    writer = EventWriter(Client(api.url), "node1", grace=0.0)
    writer.tell(starting("node1"))
    writer.tell(no_health_check(EDGE, "node1", 30900, "cannot listen"))

    def listed() -> dict[str, Object]:
        return {event["reason"]: event for event in api.client.list(EVENT_OF_GROUP, "default").items}

    found = eventually(listed, lambda events: len(events) == 2)
    first, second = found["Starting"], found["FailedToStartServiceHealthcheck"]
    assert first["regarding"] == {"kind": "Node", "apiVersion": "v1", "name": "node1", "uid": "node1"}
    assert (first["type"], first["action"], first["note"]) == ("Normal", "StartKubeProxy", "")
    assert second["regarding"]["name"] == "edge"
    assert (second["type"], second["action"]) == ("Warning", "Listen")
    assert second["note"] == 'node node1 failed to start healthcheck "default/edge" on port 30900: cannot listen'
    for event in found.values():
        assert (event["reportingController"], event["reportingInstance"]) == ("kube-proxy", "kube-proxy-node1")
    assert {event["reason"] for event in api.client.list(EVENT, "default").items} == set(found)


def test_an_api_that_is_away_costs_the_teller_nothing(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    writer = EventWriter(Client("unix:///nowhere/api.sock"), "node1", grace=0.0)
    began = time.monotonic()
    for _ in range(WAITING * 3):
        writer.tell(starting("node1"))
    assert time.monotonic() - began < 5.0
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


def test_no_thread_is_started_before_there_is_something_to_tell(api: Api) -> None:
    before = threading.active_count()
    EventWriter(Client(api.url), "node1")
    assert threading.active_count() == before
