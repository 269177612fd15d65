"""Documents in: assemble them, hand the scan over, publish the crystal."""

from bluesky_cdinn.callbacks._assembler import RockingCurveAssembler, is_rocking_curve
from bluesky_cdinn.callbacks._broadcast import DocumentBroadcast
from bluesky_cdinn.callbacks._live import LiveReconstruction
from bluesky_cdinn.callbacks._paths import mapped
from bluesky_cdinn.callbacks._received import ReceivedRun
from bluesky_cdinn.callbacks._remote import RemoteReconstruction, is_result
from bluesky_cdinn.callbacks._router import RunRouter
from bluesky_cdinn.callbacks._session import default_live, set_default_live
from bluesky_cdinn.callbacks._stored import stored_curve
from bluesky_cdinn.summary import ReconstructionSummary

__all__ = [
    "DocumentBroadcast",
    "LiveReconstruction",
    "ReceivedRun",
    "ReconstructionSummary",
    "RemoteReconstruction",
    "RockingCurveAssembler",
    "RunRouter",
    "default_live",
    "is_result",
    "is_rocking_curve",
    "mapped",
    "set_default_live",
    "stored_curve",
]
