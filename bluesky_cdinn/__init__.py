"""Live Bragg coherent diffraction imaging for Bluesky."""

from importlib.metadata import version

__version__ = version("bluesky-cdinn")
