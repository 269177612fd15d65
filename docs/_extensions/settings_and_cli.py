"""Write the pages of the settings and of the command line from the code, before Sphinx reads its sources."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx

from bluesky_cdinn.settings import Settings


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this when it loads the extension."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True}


def write_pages(app: Sphinx) -> None:
    """Write both pages beside the generated API reference, which git ignores."""
    folder = Path(app.srcdir) / "reference" / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.md").write_text("\n".join(settings_table(Settings)) + "\n")
    (folder / "cli.md").write_text(command_line())


def command_line() -> str:
    """Return typer's own description of every command, as Markdown."""
    command = [sys.executable, "-m", "typer", "bluesky_cdinn.cli", "utils", "docs", "--name", "cdinn"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def settings_table(model: type[BaseModel]) -> Iterator[str]:
    """Yield the lines of a table of every setting, section by section."""
    plain = {name: field for name, field in model.model_fields.items() if not is_section(field)}
    yield from table("top level", "CDINN_", plain)
    for name, field in model.model_fields.items():
        if is_section(field):
            yield from table(f"`[{name}]`", f"CDINN_{name.upper()}__", field.annotation.model_fields)


def table(title: str, prefix: str, fields: dict[str, FieldInfo]) -> Iterator[str]:
    """Yield one section's table."""
    yield from (f"## {title}", "", "| name | default | environment | what it is |", "|---|---|---|---|")
    for name, field in fields.items():
        shown = show(field.get_default(call_default_factory=True))
        yield f"| `{name}` | {shown} | `{prefix}{name.upper()}` | {field.description or ''} |"
    yield ""


def show(default: Any) -> str:
    """Return a default as the table shows it; a path without its Python type."""
    if default is PydanticUndefined:
        return ""
    return f"`{default.as_posix() if isinstance(default, Path) else default!r}`"


def is_section(field: FieldInfo) -> bool:
    """Whether a setting is itself a group of settings."""
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
