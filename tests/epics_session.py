"""A beamline's session over Channel Access, in a process of its own: its environment names the IOC.

``python epics_session.py JOB`` runs the scans that the JSON file JOB names, says each point as it comes, and
in its last line what came of each scan, as JSON.
"""

import json
import sys
import time
from pathlib import Path

from bluesky_cdinn.epics import EventDetector, FileDetector, RockingMotor
from bluesky_cdinn.plans import rocking_scan_with_recon
from bluesky_cdinn.session import open_session
from bluesky_cdinn.settings import Settings


def main(job):
    prefix = job["prefix"]
    theta = RockingMotor(f"{prefix}theta", name="theta")
    detectors = {
        "event": EventDetector(f"{prefix}det:", name="det"),
        "file": FileDetector(f"{prefix}det:", name="det", write_path=job["frames"]),
    }
    with open_session(Settings.model_validate(job["settings"])) as session:
        answers = [run(session, detectors[s["frames"]], theta, s["scan"]) for s in job["scans"]]
    say(answers)


def run(session, det, theta, scan):
    """Run one scan; what it raises is part of the answer."""
    for device in (theta, det):
        device.wait_for_connection(timeout=60)
    answer = {"stood": theta.position, "points": 0}

    def watch(name, doc):
        if name == "start":
            answer["raw_uid"] = doc["uid"]
        elif name == "event":
            answer["points"] = doc["seq_num"]
            say({"point": doc["seq_num"]})

    token = session.RE.subscribe(watch)
    began = time.monotonic()
    try:
        plan = rocking_scan_with_recon(det, theta, *scan, count_time=0.01, live=session.live, timeout=120)
        summary = session.run(plan)
    except Exception as error:
        answer |= {"error": type(error).__name__, "message": str(error)}
        summary = session.live.result(answer["raw_uid"]).result(120) if "raw_uid" in answer else None
    finally:
        session.RE.unsubscribe(token)
    answer |= {
        "staged": det._staged.value,
        "seconds": time.monotonic() - began,
        "stands": theta.position if theta.connected else None,
    }
    if summary is not None:
        answer |= {"status": summary.status, "reason": summary.reason, "uid": summary.processed_uid}
    return answer


def say(what):
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
