"""Who manages an object: the ownerReference with ``controller: true``."""

from __future__ import annotations

from kproxy.api.types import Object


def controller_of(obj: Object) -> Object | None:
    """The ownerReference of the controller that manages an object, or None."""
    owners = obj["metadata"].get("ownerReferences") or ()
    return next((owner for owner in owners if owner.get("controller")), None)


def controller_reference(owner: Object) -> Object:
    """An ownerReference that makes ``owner`` the controller."""
    metadata = owner["metadata"]
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
