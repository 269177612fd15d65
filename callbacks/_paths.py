"""Where detector files lie on this machine, when documents name them as another one sees them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bluesky_cdinn.callbacks._assets import resource_path, uri_path
from bluesky_cdinn.files import located


def file_path(doc: Mapping[str, Any]) -> Path:
    """Return the file, or the folder of files, that a Resource or StreamResource document names.

    Raises
    ------
    InvalidInput
        Its URI leads to something else than a file.
    KeyError
        It names none.
    """
    return uri_path(doc["uri"]) if "uri" in doc else resource_path(doc)


def mapped(name: str, doc: Mapping[str, Any], paths: Mapping[str, str]) -> Mapping[str, Any]:
    """Return a document that names its file as this machine sees it; other documents as they are.

    Parameters
    ----------
    name, doc
        Any document.
    paths
        As for `bluesky_cdinn.files.located`.
    """
    if name not in ("resource", "stream_resource") or not paths:
        return doc
    here = located(file_path(doc), paths)
    if "uri" in doc:
        return {**doc, "uri": f"file://localhost{quote(str(here))}"}
    return {**doc, "root": "", "resource_path": str(here)}
