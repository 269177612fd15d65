"""The devices: a simulated beamline, or with ``session.devices = "epics"`` the real one.

``det``, the area detector; ``theta``, which rocks the crystal; and what moves the sample, ``x`` and ``y``.
"""

from bluesky_cdinn.beamline_devices import beamline_devices

globals().update(beamline_devices())
