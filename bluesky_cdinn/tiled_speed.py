"""What Tiled's server does anew for each request, done once: in the embedded server's own process.

Nothing that the server answers changes. To tell of a node four levels down took 29 ms of CPU time, and takes
9 (decision 0024). What another version of FastAPI or Tiled has changed is left as it comes, with a warning in
the server's log.
"""

import inspect
import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

logger = logging.getLogger(__name__)

_kept: list[Any] = []


def hasten() -> None:
    """Make this process's Tiled servers answer sooner; before one is made, and once is enough."""
    for shortcut in (_remember_dependencies, _go_straight_to_nodes, _reuse_aliases, _keep_models):
        try:
            shortcut()
        except (ImportError, AttributeError, TypeError, ValueError, LookupError) as error:
            logger.warning("%s doesn't fit the installed versions: %s", shortcut.__name__, error)


def _remember_dependencies() -> None:
    """Keep what FastAPI finds out about a dependency.

    It reads the signatures of all of a route's dependencies for every request where any dependency of the
    application is overridden, and Tiled overrides one.
    """
    from fastapi.dependencies import utils

    find_out: Callable[..., Any] = utils.get_dependant
    _require(find_out, "path", "call", "parent_oauth_scopes")
    known: dict[Any, Any] = {}

    def get_dependant(**asked: Any) -> Any:
        # Only in answering a request these are passed without those; in building a route it may be altered.
        if "parent_oauth_scopes" not in asked or "own_oauth_scopes" in asked:
            return find_out(**asked)
        key = tuple((name, tuple(it) if isinstance(it, list) else it) for name, it in asked.items())
        if key not in known:
            known[key] = find_out(**asked)
        return known[key]

    utils.get_dependant = get_dependant


class _Way:
    """Stands for the nodes on the way to one, at which nobody looks."""

    def __init__(self, root: Any, length: int) -> None:
        self._root = root
        self._length = length
        self._gone: list[str] = []

    async def lookup_adapter(self, segments: Sequence[str]) -> Any:
        """Return the node at the end of the way, and on the way itself."""
        self._gone += segments
        return self if len(self._gone) < self._length else await self._root.lookup_adapter(self._gone)


def _go_straight_to_nodes() -> None:
    """Look a node up by its whole path in one query.

    Tiled loads every node on the way, for access policies to be asked about each. There is none here.
    """
    from fastapi import HTTPException
    from tiled.catalog.adapter import CatalogNodeAdapter
    from tiled.server import router

    walk: Callable[..., Any] = router.get_entry
    parameters = _require(walk, "path", "root_tree", "access_policy")

    async def get_entry(*args: Any, **named: Any) -> Any:
        asked = parameters.bind(*args, **named)
        given = asked.arguments
        length = len([part for part in given["path"].split("/") if part])
        nobody_minds = given.get("access_policy") is None and isinstance(
            given["root_tree"], CatalogNodeAdapter
        )
        if not nobody_minds or length < 2:
            return await walk(*args, **named)
        given["root_tree"] = _Way(given["root_tree"], length)
        try:
            return await walk(*asked.args, **asked.kwargs)
        except HTTPException:
            raise
        except Exception:
            # Beyond a file's arrays, a table's columns and what a query can join only a walk ends in order.
            return await walk(*args, **named)

    router.get_entry = get_entry


def _reuse_aliases() -> None:
    """Keep the names under which a query meets the table of nodes: SQLAlchemy takes 1 ms to make one."""
    from sqlalchemy import select
    from sqlalchemy.orm import aliased
    from tiled.catalog import adapter

    node = adapter.orm.Node
    _require(adapter.node_from_segments, "segments", "root_id")
    ancestor = cache(lambda depth: aliased(node))

    def node_from_segments(segments: Sequence[str], root_id: int = 0) -> Any:
        nodes = [*map(ancestor, range(len(segments))), node]
        statement = select(node).select_from(nodes[0]).where(nodes[0].id == root_id)
        for parent, child, segment in zip(nodes, nodes[1:], segments, strict=False):
            statement = statement.join(child, child.parent == parent.id).where(child.key == segment)
        return statement

    adapter.node_from_segments = node_from_segments


def _keep_models() -> None:
    """Keep the types of the answers: pydantic forgets, and makes anew, those that nobody holds."""
    from tiled.server import schemas

    links = schemas.resource_links_type_by_structure_family.values()
    _kept.extend(schemas.Resource[schemas.NodeAttributes, kind, schemas.EmptyDict] for kind in links)
    _kept.append(schemas.Resource[schemas.NodeAttributes, schemas.ContainerLinks, schemas.ContainerMeta])


def _require(function: Callable[..., Any], *names: str) -> inspect.Signature:
    """Return a function's signature; ValueError if it has no parameters of these names."""
    signature = inspect.signature(function)
    if missing := [name for name in names if name not in signature.parameters]:
        raise ValueError(f"{function.__qualname__} has no {', '.join(missing)}")
    return signature
