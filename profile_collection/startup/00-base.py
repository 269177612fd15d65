"""The session: RunEngine, store and live reconstruction, as the settings file and the environment say."""

from bluesky import RunEngine

from bluesky_cdinn.callbacks import default_live
from bluesky_cdinn.plans import rocking_scan, rocking_scan_with_recon  # noqa: F401 - for the prompt

RE = RunEngine({}, call_returns_result=True)
live = default_live()
catalog = live.catalog
RE.subscribe(catalog.raw_writer())
RE.subscribe(live)
