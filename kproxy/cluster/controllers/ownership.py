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


def controller_change(obj: Object, owner: Object | None) -> Object:
    """The merge patch that gives an object, as it is now, another controller.

    Args:
        obj: the object as it was seen; the patch is refused when it has changed since.
        owner: the new controller; None leaves it without one.
    """
    metadata = obj["metadata"]
    others = [entry for entry in metadata.get("ownerReferences") or () if not entry.get("controller")]
    change = {
        "uid": metadata["uid"],
        "resourceVersion": metadata["resourceVersion"],
        "ownerReferences": [*others, *([controller_reference(owner)] if owner else [])] or None,
    }
    return {"metadata": change}
