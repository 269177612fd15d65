"""The devices: a simulated beamline, or with ``session.devices = "epics"`` the real one."""

from bluesky_cdinn.beamline_devices import beamline_devices

det, theta = beamline_devices()
