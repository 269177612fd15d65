"""cohere_core on its torch backend, in a Python that has it; orders on stdin, answers on stdout.

One start from random numbers, ``3*(20*ER+180*HIO)+20*ER`` with its usual shrink-wrap and twin-breaking.
"""

import contextlib
import importlib.metadata
import json
import os
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
# What cohere prints goes to stderr; stdout carries the answers alone.
answers, sys.stdout = sys.stdout, sys.stderr

import numpy as np  # noqa: E402
import torch  # noqa: E402
from cohere_core.controller.phasing import create_rec  # noqa: E402

torch.set_num_threads(1)
PARAMETERS = {
    "algorithm_sequence": "3*(20*ER+180*HIO)+20*ER",
    "hio_beta": 0.9,
    "initial_support_area": [0.5, 0.5, 0.5],
    "shrink_wrap_trigger": [20, 20],
    "shrink_wrap_type": "GAUSS",
    "shrink_wrap_threshold": 0.1,
    "shrink_wrap_gauss_sigma": 1.0,
    "twin_trigger": [2],
}


def solve(folder, seed, settings):
    with np.load(f"{folder}/in.npz") as data:
        # It knows no masks: what isn't measured is zero, as its own pre-processing leaves it.
        magnitude = np.sqrt(np.where(data["valid"], data["intensity"], 0)).astype(np.float32)
    np.save(f"{folder}/data.npy", magnitude)
    torch.manual_seed(seed)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        wall, cpu = time.perf_counter(), time.process_time()
        rec = create_rec(PARAMETERS | settings, f"{folder}/data.npy", "torch", -1, debug=True)
        rec.iterate()
        took = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    # Its object is the inverse transform of its data: the conjugate is the twin in the other convention.
    np.save(f"{folder}/out.npy", np.conj(rec.get_image().numpy()).astype(np.complex64))
    return took


facts = {
    "version": importlib.metadata.version("cohere_core"),
    "torch": torch.__version__,
    "parameters": PARAMETERS,
}
print(json.dumps(facts), file=answers, flush=True)
for line in sys.stdin:
    order = json.loads(line)
    print(json.dumps(solve(**order)), file=answers, flush=True)
