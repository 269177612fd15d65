"""Plans that measure rocking curves and wait for the crystals in them."""

from bluesky_cdinn.plans._adaptive_rocking_scan import adaptive_rocking_scan
from bluesky_cdinn.plans._follow import follow
from bluesky_cdinn.plans._rocking_scan import rocking_scan
from bluesky_cdinn.plans._rocking_scan_with_recon import rocking_scan_with_recon
from bluesky_cdinn.plans._survey import survey

__all__ = ["adaptive_rocking_scan", "follow", "rocking_scan", "rocking_scan_with_recon", "survey"]
