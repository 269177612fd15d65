"""What many runs say of themselves, a page at a time: only the part of their metadata that is asked for."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
from tiled.query_registration import default_query_registry

from bluesky_cdinn.errors import StoreUnavailable

PAGE = 300
"""The most that a Tiled server gives at once."""


def listed(container: Any, part: str, *queries: Any) -> Iterator[Any]:
    """Yield a part of the metadata of each run that fits all queries, the oldest entry first.

    Iterating over the client itself would bring whole start documents, a hundred at a time, and have the
    server count what is in each run.

    Parameters
    ----------
    container
        Tiled client of raw or of processed runs.
    part
        What of the metadata: a JMESPath expression, which the server evaluates.
    queries
        As in `tiled.queries`.

    Raises
    ------
    StoreUnavailable
        Tiled can't be reached, or refuses.
    """
    url: str | None = container.item["links"]["search"]
    asked = {**_filters(queries), "fields": "metadata", "select_metadata": part, "page[limit]": PAGE}
    while url is not None:
        page = _fetched(container.context.http_client, url, asked)
        for item in page["data"]:
            yield item["attributes"]["metadata"]["selected"]
        url = page["links"]["next"]


def _filters(queries: tuple[Any, ...]) -> dict[str, list[Any]]:
    filters: dict[str, list[Any]] = {}
    for query in queries:
        name = default_query_registry.query_type_to_name[type(query)]
        for field, value in query.encode().items():
            filters.setdefault(f"filter[{name}][condition][{field}]", []).append(value)
    return filters


def _fetched(client: Any, url: str, asked: dict[str, Any]) -> dict[str, Any]:
    # The link to the next page holds the place in the list alone.
    place = parse_qs(urlsplit(url).query)
    try:
        response = client.get(
            url.partition("?")[0], params={**asked, **place}, headers={"Accept": "application/json"}
        )
        response.raise_for_status()
    except httpx.HTTPError as error:
        raise StoreUnavailable(f"Tiled doesn't list the runs of {url.partition('?')[0]}: {error}") from error
    return response.json()
