"""Tiled clients as this package uses them for itself, whatever a session has made of its own."""

from typing import Any

from tiled.client.container import DEFAULT_STRUCTURE_CLIENT_DISPATCH, Container
from tiled.structures.core import StructureFamily


def plain_client(node: Any) -> Container:
    """Return a client of the same node that sees only containers, arrays and tables.

    The Bluesky clients take a key for the beginning of a uid, and importing databroker changes their layout
    in the whole process.
    """
    default = DEFAULT_STRUCTURE_CLIENT_DISPATCH["numpy"]
    families = {family.value: default[family.value] for family in StructureFamily if family.value in default}
    return Container(node.context, item=node.item, structure_clients=families)
