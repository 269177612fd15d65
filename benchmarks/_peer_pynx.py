"""PyNX on the CPU, in a Python that has it; orders on stdin, answers on stdout.

One start: 200 HIO with 10 of them on a halved support, 400 RAAR, 200 ER, the support updated every 20 with
the defaults of its beamline script (and its way of trying again when the support diverges).
"""

import json
import os
import sys
import time

os.environ["PYNX_PU"] = "cpu"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What PyNX prints goes to stderr; stdout carries the answers alone.
answers, sys.stdout = sys.stdout, sys.stderr

import numpy as np  # noqa: E402
import pynx.version  # noqa: E402
from pynx.cdi import (  # noqa: E402
    CDI,
    ER,
    HIO,
    RAAR,
    AutoCorrelationSupport,
    DetwinHIO,
    InitObjRandom,
    ScaleObj,
    SupportTooLarge,
    SupportTooSmall,
    SupportUpdate,
)
from pynx.processing_unit import default_processing_unit  # noqa: E402

default_processing_unit.use_cpu(nproc=1)


def attempt(intensity, valid, threshold):
    cdi = CDI(intensity.copy(), mask=None if valid.all() else (~valid).astype(np.int8))
    cdi = InitObjRandom(src="support") * AutoCorrelationSupport(threshold=(0.09, 0.11)) * cdi
    cdi = ScaleObj(method="F") * cdi
    update = SupportUpdate(
        threshold_relative=threshold, smooth_width=(2, 0.5, 500), min_fraction=1e-4, max_fraction=0.7
    )
    for _ in range(5):
        cdi = update * HIO(beta=0.9) ** 20 * cdi
    cdi = DetwinHIO(beta=0.9, nb_cycle=10) * cdi
    for _ in range(5):
        cdi = update * HIO(beta=0.9) ** 20 * cdi
    for _ in range(20):
        cdi = update * RAAR(beta=0.9) ** 20 * cdi
    for _ in range(10):
        cdi = ER() ** 20 * update * cdi
    return cdi.get_obj(shift=True)


def solve(folder, seed, settings):
    assert not settings
    with np.load(f"{folder}/in.npz") as data:
        intensity, valid = (np.fft.fftshift(data[name]) for name in ("intensity", "valid"))
    np.random.seed(seed)  # noqa: NPY002 (what PyNX draws from)
    wall, cpu = time.perf_counter(), time.process_time()
    threshold, density = 0.25, None
    for _ in range(10):
        try:
            density = attempt(intensity, valid, threshold)
            break
        except SupportTooLarge:
            threshold *= 1.1
        except SupportTooSmall:
            threshold /= 1.1
    took = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    np.save(f"{folder}/out.npy", np.zeros(intensity.shape) if density is None else density)
    return took


print(json.dumps({"version": pynx.version.__version__}), file=answers, flush=True)
for line in sys.stdin:
    order = json.loads(line)
    print(json.dumps(solve(**order)), file=answers, flush=True)
