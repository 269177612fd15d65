"""The embedded server's shortcuts: they fit the installed versions, are taken, and change no answer."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

# In a process of its own: the shortcuts are for all servers of a process, and not to be undone.
SCRIPT = textwrap.dedent(
    """
    import json, logging, re, sys
    import httpx, numpy as np, pyarrow as pa
    from sqlalchemy import event
    from sqlalchemy.engine import Engine
    from tiled.catalog import in_memory
    from tiled.client import Context, from_context
    from tiled.server.app import build_app
    from bluesky_cdinn import tiled_speed

    told = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logging.getLogger("bluesky_cdinn").addHandler(handler)
    statements = []
    event.listen(Engine, "before_cursor_execute", lambda *args: statements.append(args[2]))

    def volatile(text):
        return re.sub(r'"?(time_updated|expires|token|version)"?:"[^"]*"', "", text)

    def everything(client, http):
        answers = {}
        for path in sys.argv[2].split():
            answer = http.get(f"/api/v1{path}")
            answers[path] = [answer.status_code, volatile(answer.text)]
        return answers

    app = build_app(in_memory(writable_storage=[sys.argv[1], "duckdb:///" + sys.argv[1] + "/tables.db"]))
    with Context.from_app(app) as context:
        client, http = from_context(context), context.http_client
        run = client.create_container("raw").create_container("uid", metadata={"start": {"uid": "uid"}})
        stream = run.create_container("primary")
        stream.write_array(np.arange(12.0).reshape(3, 4), key="det", metadata={"units": "counts"})
        table = pa.table({"theta": [0.1, 0.2]})
        stream.create_appendable_table(schema=table.schema, key="internal").append_partition(0, table)
        before = everything(client, http)
        tiled_speed.hasten()
        after = [everything(client, http) for _ in range(2)]
        statements.clear()
        http.get("/api/v1/metadata/raw/uid/primary/det")
        lookups = sum(text.startswith("SELECT nodes.id") for text in statements)
        client["raw/uid/primary"].write_array(np.ones(3), key="later")
        later = client["raw/uid/primary/later"].read().tolist()
    said = {"told": list(told), "before": before, "after": after, "lookups": lookups, "later": later}

    # As if other versions were installed.
    from fastapi.dependencies import utils
    from tiled.server import router

    del utils.get_dependant
    router.get_entry = as_it_was = lambda path: path
    told.clear()
    tiled_speed.hasten()
    said["other"] = [router.get_entry is as_it_was, len(told)]
    print(json.dumps(said))
    """
)
PATHS = (
    "/",
    "/metadata/",
    "/metadata/raw",
    "/metadata//raw/uid/",
    "/metadata/raw/uid/primary",
    "/metadata/raw/uid/primary/det?include_data_sources=true",
    "/metadata/raw/uid/primary/internal",
    "/metadata/nothing",
    "/metadata/raw/nothing/primary/det",
    "/metadata/raw/uid/primary/det/nothing",
    "/metadata/raw/uid/primary/internal/theta",
    "/metadata/raw/uid/primary/internal/theta/nothing",
    "/metadata/raw" + "/nothing" * 80,
    "/search/raw/uid/primary",
    "/array/full/raw/uid/primary/det?format=json",
    "/array/full/raw/uid/primary?format=json",
    "/table/partition/raw/uid/primary/internal?partition=0&format=json-seq",
)


def test_nothing_is_answered_otherwise(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), " ".join(PATHS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["told"] == [], "a shortcut doesn't fit the installed versions of FastAPI and Tiled"
    for again in said["after"]:
        assert again == said["before"]
    codes = {path: code for path, (code, _) in said["before"].items()}
    assert {code for path, code in codes.items() if "nothing" in path} == {404}
    assert codes["/metadata/raw/uid/primary"] == codes["/metadata/"] == 200
    assert said["lookups"] == 1
    assert said["later"] == [1.0, 1.0, 1.0]
    # What doesn't fit is left as it is, and told.
    assert said["other"] == [True, 2]
