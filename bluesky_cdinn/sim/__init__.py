"""A simulated beamline: crystals, their exact diffraction, detectors with faults, devices, replay."""
