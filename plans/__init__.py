"""Plans that measure rocking curves and wait for the crystals in them."""

from bluesky_cdinn.plans._rocking_scan import rocking_scan
from bluesky_cdinn.plans._rocking_scan_with_recon import rocking_scan_with_recon

__all__ = ["rocking_scan", "rocking_scan_with_recon"]
