"""The devices: a simulated beamline. Put your own detector and rocking motor here under these names."""

from bluesky_cdinn.sim.devices import simulated_beamline

det, theta = simulated_beamline()
