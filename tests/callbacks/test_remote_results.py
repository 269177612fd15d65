"""What is asked of Tiled by those who wait for reconstructions made elsewhere."""

from bluesky_cdinn.callbacks._remote import _Expected


def processed(catalog, raw_uid, status, stop):
    start = {"uid": f"of-{raw_uid}", "time": 1.7e9, "raw_uid": raw_uid, "status": status}
    start |= {"purpose": "reconstruction", "scalars": {"chi2": 0.5}, "sample": "gold"}
    catalog.processed.create_container(start["uid"], metadata={"start": start, "stop": stop})


def test_all_scans_without_a_result_are_asked_for_at_once(catalog, monkeypatch):
    expected = _Expected(catalog)
    for number in range(100):
        expected.add(f"scan-{number}")
    processed(catalog, "scan-3", "success", {"exit_status": "success"})
    processed(catalog, "scan-4", "running", None)
    processed(catalog, "another", "success", {"exit_status": "success"})
    asked = []
    client = catalog.processed.context.http_client
    monkeypatch.setitem(client.event_hooks, "request", [*client.event_hooks["request"], asked.append])
    expected.look()
    assert len([request for request in asked if "/search/" in str(request.url)]) == 1
    summary = expected.future("scan-3").result(0)
    assert (summary.status, summary.chi2, summary.sample) == ("success", 0.5, "gold")
    assert "scan-3" not in expected.waiting()
    assert len(expected.waiting()) == 99
