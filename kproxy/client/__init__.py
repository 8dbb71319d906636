"""The one Kubernetes client: list, watch, create, update, patch, delete, over a unix socket or TCP.

Law: it knows Kubernetes' HTTP conventions and nothing of what the objects mean. It is synchronous and light to import,
for a node proxy starts with it; what runs side by side runs in threads (docs/decisions/0030-http-client.md).
"""

from kproxy.client.answers import Applied, ApplyResult, ApplyWarning, Listing
from kproxy.client.client import APPLIES_PATH, LAB_PATH, Client
from kproxy.client.connections import Credentials
from kproxy.client.streams import RawEvent, RawSnapshot, Snapshot, WatchEvent

__all__ = [
    "APPLIES_PATH",
    "LAB_PATH",
    "Applied",
    "ApplyResult",
    "ApplyWarning",
    "Client",
    "Credentials",
    "Listing",
    "RawEvent",
    "RawSnapshot",
    "Snapshot",
    "WatchEvent",
]
