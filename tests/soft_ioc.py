"""The soft IOC in a process of its own, for the tests that talk to one."""

import json
import os
import selectors
import subprocess
import sys
import time
from contextlib import contextmanager

START_S = 60.0


class SoftIoc:
    """A running IOC: its process, and the environment that its clients need."""

    def __init__(self, process, said):
        self.process = process
        self.prefix = said["prefix"]
        self.port = said["port"]
        self.environment = {**os.environ, **said["environment"]}


@contextmanager
def soft_ioc(*arguments):
    """Start an IOC and wait until it serves; end it afterwards, whatever happened."""
    command = [sys.executable, "-m", "bluesky_cdinn.sim.ioc", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield SoftIoc(process, json.loads(_first_line(process)))
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _first_line(process):
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        began = time.monotonic()
        assert selector.select(START_S), f"the IOC was not there after {time.monotonic() - began:.0f} s"
        return process.stdout.readline()
