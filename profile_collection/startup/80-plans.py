"""The plans: bluesky's by their usual names, and those that measure crystals."""

import bluesky.plan_stubs as bps  # noqa: F401
import bluesky.plans as bp  # noqa: F401
import bluesky.preprocessors as bpp  # noqa: F401
from bluesky.plan_stubs import mv, mvr  # noqa: F401
from bluesky.plans import count, rel_scan, scan  # noqa: F401

from bluesky_cdinn.plans import *  # noqa: F403
