"""Catching up: what is chosen, and campaigns on a real Tiled server and real Dask clusters, through kills."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import backfill_jobs
import numpy as np
import psutil
import pytest
from event_model import compose_run
from pydantic import SecretStr
from typer.testing import CliRunner

from bluesky_cdinn import backfill_dask, backfill_job, listing
from bluesky_cdinn.backfill import Order, Plan, Wanted, decide, plan
from bluesky_cdinn.backfill_campaign import POLL_S, Campaign
from bluesky_cdinn.backfill_claims import BackfillClaims
from bluesky_cdinn.backfill_dask import by_dask, carry_out_all, cluster_at, local_cluster, portable
from bluesky_cdinn.backfill_job import carry_out
from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.claims import MAX_DEATHS, pardon
from bluesky_cdinn.cli import app
from bluesky_cdinn.cli import settings as settings_of
from bluesky_cdinn.clients import plain_client
from bluesky_cdinn.doctor import ball_curve
from bluesky_cdinn.embedded import EmbeddedServer
from bluesky_cdinn.errors import InvalidInput, NotFound, ReconstructionFailed, StoreUnavailable
from bluesky_cdinn.heartbeat import Heartbeat, post
from bluesky_cdinn.settings import ReconstructionOptions, Settings, TiledSettings
from bluesky_cdinn.staleness import Stale, Standard, standard_now

# The quickest there is: these tests are about what is done, not how well.
QUICK = ReconstructionOptions(start="autocorrelation", refine=False, starts=1)
QUICKLY = ("--start", "autocorrelation", "--no-refine", "--starts", "1")
MOMENT = 1_700_000_000.0
PATIENCE_S = 120.0


def run(uid: str, *, over: bool = True, **start: Any) -> dict[str, Any]:
    """Return a run as the server tells it: what isn't there is null."""
    names = ("time", "scan_id", "sample", "purpose", "motors", "cdi")
    whole = dict.fromkeys(names) | {"uid": uid, "time": MOMENT, "purpose": "rocking_curve"} | start
    return {"start": whole, "stop": {"exit_status": "success"} if over else None}


def made(uid: str, raw_uid: str, *, status: str = "success", **start: Any) -> dict[str, Any]:
    options = ReconstructionOptions().model_dump(mode="json") | {"levels": [[32, 32, 32]]}
    whole = {"uid": uid, "raw_uid": raw_uid, "time": MOMENT, "status": status, "parameters": options}
    exit_status = {"success": "success", "cancelled": "abort"}.get(status, "fail")
    return {"start": whole | start, "stop": {"exit_status": exit_status}}


def why(reconstructions: list[dict[str, Any]], standard: Standard | None = None) -> list[str]:
    found = decide([run("a")], reconstructions, Wanted(), standard or Standard())
    return [order.why for order in found.orders]


def test_only_rocking_curves_that_are_over() -> None:
    runs = [
        run("ours"),
        run("another plan", purpose=None, cdi={"detector": "det"}),
        run("alignment", purpose=None, cdi={"rocking_motor": "theta"}, motors=["x"]),
        run("count", purpose=None),
        run("dark", purpose="dark", cdi={}),
        run("now", over=False),
    ]
    found = decide(runs, [], Wanted(), Standard())
    assert [order.raw_uid for order in found.orders] == ["ours", "another plan"]
    assert found.left == {"no rocking curve": 3, "still measured": 1}


def test_one_odd_run_does_not_stop_the_others() -> None:
    runs = [run("none", time=None), run("text", time="noon"), run("good")]
    found = decide(runs, [made("p", "good", status="failed", time=None)], Wanted(), Standard())
    assert [order.raw_uid for order in found.orders] == ["good"]
    assert found.left == {"without a time": 2}


def test_the_newest_come_first_up_to_the_limit() -> None:
    runs = [run(str(i), time=MOMENT + i) for i in (1, 3, 2)]
    found = decide(runs, [], Wanted(limit=2), Standard())
    assert [order.raw_uid for order in found.orders] == ["3", "2"]
    assert found.left == {"over the limit": 1}


def test_the_sample_may_be_said_in_three_places() -> None:
    runs = [run("a", sample="Pt"), run("b", cdi={"sample": "Pt"}), run("c"), run("d", sample="Au")]
    uids = lambda plan: [order.raw_uid for order in plan.orders]  # noqa: E731
    assert uids(decide(runs, [], Wanted(sample="Pt"), Standard())) == ["a", "b"]
    assert uids(decide(runs, [], Wanted(sample="Pt"), Standard(), {"sample": "Pt"})) == ["a", "b", "c"]


def test_what_counts_as_a_reconstruction() -> None:
    assert why([]) == ["never reconstructed"]
    assert why([made("p", "b")]) == ["never reconstructed"]
    assert why([made("p", "a")]) == []
    running = made("p", "a", status="running") | {"stop": None}
    assert why([running]) == ["never reconstructed"]
    cut_short = made("p", "a") | {"stop": {"exit_status": "fail"}}
    assert why([cut_short]) == ["cancelled"]
    assert why([made("p", "a", status="cancelled")], Standard(keep_failed=True)) == ["cancelled"]


def test_failures_are_tried_again_or_kept() -> None:
    failed = made("p", "a", status="failed", reason="no peak")
    assert why([failed]) == ["failed: no peak"]
    assert why([failed], Standard(keep_failed=True)) == []
    assert why([failed, made("q", "a", time=MOMENT - 1)]) == []


def test_another_version_is_stale_if_asked() -> None:
    old = made("p", "a", versions={"bluesky-cdinn": "0.0.1"})
    new = made("q", "a", versions={"bluesky-cdinn": Standard().version}, time=MOMENT + 1)
    standard = Standard(stale=frozenset({Stale.VERSION}))
    assert why([old]) == []
    assert why([old], standard) == ["made by version 0.0.1"]
    assert why([old, new], standard) == []


def test_other_weights_are_stale_if_asked() -> None:
    standard = Standard(stale=frozenset({Stale.WEIGHTS}), weights="ab" * 32, least_side=16)
    assert why([made("p", "a", weights={"sha256": "ab" * 32})], standard) == []
    assert why([made("p", "a", weights={"sha256": "cd" * 32})], standard) == ["made with weights cdcdcdcd"]
    assert why([made("p", "a")], standard) == ["made without weights"]
    assert why([made("p", "a", weights={"sha256": "cd" * 32})], replace(standard, weights=None)) != []


def test_weights_that_were_not_asked_are_not_missed_for_ever() -> None:
    standard = Standard(stale=frozenset({Stale.WEIGHTS}), weights="ab" * 32, least_side=16)
    assert why([made("p", "a", parameters={"levels": [[12, 16, 16], [64, 64, 64]]})], standard) == []
    failed = made("p", "a", status="failed", parameters={})
    assert why([failed], replace(standard, keep_failed=True)) == []


def test_other_options_are_stale_if_asked() -> None:
    standard = Standard(ReconstructionOptions(starts=8), frozenset({Stale.OPTIONS}))
    assert why([made("p", "a")], standard) == ["made with starts 4"]
    eight = made("p", "a")["start"]["parameters"] | {"starts": 8, "device": "cuda:0", "threads": 7}
    assert why([made("p", "a", parameters=eight)], standard) == []
    less = eight | {
        "starts": 2,
        "fallback": [{"starts": 8, "device": "cuda"}, {"starts": 4, "device": "cuda"}],
    }
    assert why([made("p", "a", parameters=less)], standard) == []


def test_whoever_decides_the_same_orders_the_same_run() -> None:
    def ordered(reconstructions: list[dict[str, Any]], options: ReconstructionOptions) -> str:
        return decide([run("a")], reconstructions, Wanted(), Standard(options)).orders[0].processed_uid

    options, failed = ReconstructionOptions(), made("p", "a", status="failed")
    assert ordered([], options) == ordered([], options.model_copy(update={"threads": 3}))
    assert len({ordered([], options), ordered([failed], options), ordered([], QUICK)}) == 3


def test_the_standard_of_this_installation() -> None:
    assert standard_now(QUICK, [Stale.WEIGHTS]).weights is None
    now = standard_now(ReconstructionOptions(), [Stale.WEIGHTS])
    assert now.weights is not None
    assert (len(now.weights), now.least_side) == (64, 16)


# Against a real server.


def measure(catalog: Catalog, **start: Any) -> str:
    """Store the rocking curve of a ball as a plan would have measured it; return its uid."""
    curve = ball_curve(24, 4.0)
    metadata = {"purpose": "rocking_curve", "cdi": {"detector": "det", "rocking_motor": "theta"}} | start
    bundle = compose_run(time=metadata.pop("time", None), metadata=metadata, validate=False)
    write = catalog.raw_writer()
    write("start", dict(bundle.start_doc))
    frames = np.asarray(curve.frames)
    shape = list(frames.shape[1:])
    keys = {
        "det_image": {"source": "x", "dtype": "array", "shape": shape, "dtype_numpy": frames.dtype.str},
        "theta": {"source": "x", "dtype": "number", "shape": [], "units": "deg"},
    }
    owners = {"det": ["det_image"], "theta": ["theta"]}
    stream = bundle.compose_descriptor(name="primary", data_keys=keys, object_keys=owners, validate=False)
    write("descriptor", dict(stream.descriptor_doc))
    for frame, angle in zip(frames, curve.angles_deg, strict=True):
        data = {"det_image": frame, "theta": float(angle)}
        write(
            "event",
            dict(stream.compose_event(data=data, timestamps=dict.fromkeys(data, 0.0), validate=False)),
        )
    write("stop", dict(bundle.compose_stop(validate=False)))
    return bundle.start_doc["uid"]


def quick(settings: Settings) -> Settings:
    return settings.model_copy(update={"reconstruction": QUICK})


@pytest.fixture
def catalog(settings: Settings) -> Iterator[Catalog]:
    with Catalog(quick(settings)) as opened:
        yield opened


def planned(catalog: Catalog, wanted: Wanted | None = None, **standard: Any) -> Plan:
    return plan(catalog, wanted or Wanted(), Standard(catalog.settings.reconstruction, **standard))


def statuses(catalog: Catalog) -> dict[str, list[str]]:
    """Return how the reconstructions of each raw run ended."""
    found: dict[str, list[str]] = {}
    for summary in catalog.reconstructions():
        found.setdefault(summary.raw_uid, []).append(summary.status)
    return found


def register(catalog: Catalog, count: int) -> None:
    """Make the entries of scans and of every second one's reconstruction, without their data."""
    raw, processed = plain_client(catalog.raw), plain_client(catalog.processed)
    for i in range(count):
        start = {"uid": f"raw-{i}", "time": MOMENT + i, "sample": f"sample {i % 3}", "bulk": list(range(99))}
        start |= {"purpose": "rocking_curve"} if i % 4 else {"cdi": {"detector": "det"}}
        stop = {} if i == 1 else {"stop": {"exit_status": "success"}}
        raw.create_container(start["uid"], metadata={"start": start, **stop})
        if i % 2 == 0:
            begun = made(f"made-{i}", start["uid"])["start"] | {"purpose": "reconstruction"}
            metadata = {"start": begun, "stop": {"exit_status": "success"}}
            processed.create_container(begun["uid"], metadata=metadata)


def test_tiled_is_asked_page_by_page(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    register(catalog, 12)
    monkeypatch.setattr(listing, "PAGE", 5)
    asked = []
    client = catalog.raw.context.http_client
    monkeypatch.setitem(client.event_hooks, "request", [*client.event_hooks["request"], asked.append])
    found = planned(catalog)
    assert [order.raw_uid for order in found.orders] == [f"raw-{i}" for i in (11, 9, 7, 5, 3)]
    assert found.left == {"current": 6, "still measured": 1}
    searches = [
        request
        for request in asked
        if "/search/" in str(request.url) and "select_metadata" in str(request.url)
    ]
    # Nine of our own plans and three others on two pages and one, then their reconstructions.
    assert len(searches) <= 6
    assert all("bulk" not in str(request.url) for request in searches)


def test_what_is_wanted_is_asked_of_tiled(catalog: Catalog) -> None:
    register(catalog, 8)
    uids = lambda wanted: [order.raw_uid for order in planned(catalog, wanted).orders]  # noqa: E731
    moment = datetime.fromtimestamp(MOMENT + 5, UTC)
    assert uids(Wanted(since=moment)) == ["raw-7", "raw-5"]
    assert uids(Wanted(until=moment)) == ["raw-3"]
    assert uids(Wanted(sample="sample 1")) == ["raw-7"]
    assert uids(Wanted(uids=("raw-3", "raw-7"))) == ["raw-7", "raw-3"]
    with pytest.raises(NotFound, match="no raw run 'nonsense'"):
        planned(catalog, Wanted(uids=("nonsense",)))


def test_a_scan_is_reconstructed_once(catalog: Catalog) -> None:
    raw_uid = measure(catalog, sample="ball")
    (order,) = planned(catalog).orders
    done = carry_out(catalog, order)
    assert (done.status, done.delivered, done.processed_uid) == ("success", True, order.processed_uid)
    stored = catalog.load(order.processed_uid)
    assert (stored.raw_uid, stored.metadata["sample"], stored.parameters["starts"]) == (raw_uid, "ball", 1)
    assert math.isfinite(done.chi2)
    # As where a worker was lost to its scheduler, and went on all the same.
    assert carry_out(catalog, order).status == "success"
    assert planned(catalog).left == {"current": 1}
    assert statuses(catalog) == {raw_uid: ["success"]}


def test_stale_ones_are_made_again_and_then_are_not(catalog: Catalog) -> None:
    raw_uid = measure(catalog)
    assert [done.status for done in made_one_by_one(catalog)] == ["success"]
    other = catalog.settings.model_copy(update={"reconstruction": QUICK.model_copy(update={"seed": 5})})
    with Catalog(other) as later:
        assert [done.status for done in made_one_by_one(later, stale=frozenset(Stale))] == ["success"]
        assert made_one_by_one(later, stale=frozenset(Stale)) == []
        assert statuses(later) == {raw_uid: ["success", "success"]}


def campaign_of(catalog: Catalog, **standard: Any) -> Campaign:
    by = Standard(catalog.settings.reconstruction, **standard)
    return Campaign(catalog, plan(catalog, Wanted(), by).orders, by, lambda: False)


def made_one_by_one(catalog: Catalog, **standard: Any) -> list[backfill_job.Outcome]:
    with campaign_of(catalog, **standard) as campaign:
        return list(carry_out_all(campaign, processes=1))


def test_two_backfills_at_once_share_the_scans(catalog: Catalog, settings: Settings, tmp_path: Path) -> None:
    raw_uids = {measure(catalog) for _ in range(3)}
    with (
        Catalog(quick(settings.model_copy(update={"spool": tmp_path / "another"}))) as other,
        campaign_of(catalog) as first,
        campaign_of(other) as second,
    ):
        begun = first.next()
        assert isinstance(begun, Order)
        # The one that the first is at is left to the end, when it has been done.
        outcomes = carry_out_all(second, processes=1)
        done = [next(outcomes), next(outcomes)]
        first.ended(carry_out(catalog, begun))
        done += outcomes
        assert {outcome.status for outcome in carry_out_all(first, processes=1)} == {"skipped"}
    assert [outcome.status for outcome in done] == ["success", "success", "skipped"]
    assert done[2].raw_uid == begun.raw_uid
    assert statuses(catalog) == {uid: ["success"] for uid in raw_uids}
    assert not list(catalog.folder(settings.remote.claims))
    assert not list(catalog.folder(settings.remote.workers))


def test_what_a_dead_backfill_was_at_is_taken_over(catalog: Catalog) -> None:
    raw_uid = measure(catalog)
    # One that never said goodbye, of a process that is gone.
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = campaign_of(catalog)
    dead._claims._heartbeat = replace(dead._claims._heartbeat, pid=gone.pid)
    dead._claims._beat()
    assert isinstance(dead.next(), Order)
    assert [done.status for done in made_one_by_one(catalog)] == ["success"]
    assert statuses(catalog) == {raw_uid: ["success"]}


def test_a_scan_that_workers_died_of_is_told_at_once(catalog: Catalog) -> None:
    raw_uid = measure(catalog)
    claims = catalog.folder(catalog.settings.remote.claims)
    for turn in range(1, MAX_DEATHS + 1):
        said = {"worker": "gone", "since": 1.0, "time": 1.0, "deaths": turn}
        claims.create_container(f"{raw_uid}.{turn}", metadata=said)
    (done,) = made_one_by_one(catalog)
    assert (done.status, f"--retry {raw_uid}" in done.reason) == ("error", True)
    pardon(claims, {}, raw_uid)
    assert [done.status for done in made_one_by_one(catalog)] == ["success"]


def test_a_heart_beats_on_whatever_happens(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    often = catalog.settings.remote.model_copy(update={"heartbeat_s": 0.01})
    with Catalog(catalog.settings.model_copy(update={"remote": often})) as quick_one:
        claims, beaten = BackfillClaims(quick_one), threading.Event()
        beat, raised = claims._beat, threading.Event()

        def stumble() -> None:
            if claims._heartbeat.beat and not raised.is_set():
                raised.set()
                raise ValueError("what nobody thought of")
            beat()
            if raised.is_set():
                beaten.set()

        monkeypatch.setattr(claims, "_beat", stumble)
        with claims:
            assert beaten.wait(PATIENCE_S)


def test_a_backfill_in_another_container_is_not_taken_for_dead(catalog: Catalog) -> None:
    workers, host = catalog.folder(catalog.settings.remote.workers), socket.gethostname()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name, pids in (("backfill-there", "another"), ("backfill-somewhere", "")):
        post(workers, Heartbeat(name, 1.0, host=host, pid=gone.pid, pids=pids))
    with BackfillClaims(catalog):
        assert {"backfill-there", "backfill-somewhere"} <= set(workers)


def test_a_failure_is_stored_with_its_reason_and_the_next_goes_on(catalog: Catalog) -> None:
    good = measure(catalog, time=MOMENT)
    bad = measure(catalog, time=MOMENT + 1, cdi={"detector": "absent"})
    first, second = made_one_by_one(catalog)
    assert (first.raw_uid, first.status, second.raw_uid, second.status) == (bad, "failed", good, "success")
    failed = catalog.latest(bad)
    assert "absent" in failed.reason
    assert failed.reason == first.reason
    assert made_one_by_one(catalog, keep_failed=True) == []
    assert made_one_by_one(catalog, keep_failed=True, stale=frozenset(Stale)) == []
    assert [done.status for done in made_one_by_one(catalog)] == ["failed"]


def test_what_takes_too_long_is_a_failure(catalog: Catalog) -> None:
    measure(catalog)
    (order,) = planned(catalog).orders
    hurried = catalog.settings.worker.model_copy(update={"timeout_s": 1e-6})
    options = QUICK.model_copy(update={"refine": True})
    changed = catalog.settings.model_copy(update={"worker": hurried, "reconstruction": options})
    with Catalog(changed) as other:
        done = carry_out(other, order)
    assert done.status == "failed"
    assert "worker.timeout_s" in done.reason


def test_tiled_away_is_no_failure_of_the_scan(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(catalog)
    (order,) = planned(catalog).orders
    monkeypatch.setattr(backfill_job, "READ_AGAIN_S", (0.0, 0.0))
    away = Settings(
        tiled=TiledSettings(uri="http://127.0.0.1:9"), spool=tmp_path / "other", reconstruction=QUICK
    )
    with Catalog(away) as nowhere:
        done = carry_out(nowhere, order)
        with pytest.raises(StoreUnavailable):
            planned(nowhere)
    assert done.status == "error"
    assert "doesn't answer" in done.reason
    assert not list((tmp_path / "other").glob("*processed*"))


def test_tiled_that_goes_away_meanwhile_gets_the_result_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def served() -> tuple[EmbeddedServer, Settings]:
        server = EmbeddedServer(tmp_path / "tiled")
        address = server.address()
        tiled = TiledSettings(uri=address.uri, api_key=SecretStr(address.api_key or ""))
        return server, Settings(tiled=tiled, spool=tmp_path / "spool", reconstruction=QUICK)

    server, settings = served()
    compute = backfill_job._computed

    def computed_in_an_outage(*arguments: Any) -> Any:
        server.close()
        return compute(*arguments)

    with Catalog(settings) as catalog:
        raw_uid = measure(catalog)
        (order,) = planned(catalog).orders
        monkeypatch.setattr(backfill_job, "_computed", computed_in_an_outage)
        done = carry_out(catalog, order)
    assert (done.status, done.delivered) == ("success", False)
    server, settings = served()
    with Catalog(settings) as catalog:
        assert planned(catalog).left == {"current": 1}
        assert statuses(catalog) == {raw_uid: ["success"]}
    server.close()


# By Dask.


@pytest.fixture(scope="module")
def client(tiled_server: EmbeddedServer) -> Iterator[Any]:
    """Hold two processes up for these tests: torch takes long to load."""
    tiled = TiledSettings(api_key=SecretStr(tiled_server.address().api_key or ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
        with local_cluster(Settings(tiled=tiled), 2) as client:
            yield client


def test_two_processes_share_the_scans_and_the_key_does_not_travel(
    catalog: Catalog, caplog: pytest.LogCaptureFixture, client: Any
) -> None:
    raw_uids = {measure(catalog) for _ in range(4)}
    key = catalog.api_key
    assert key
    assert key not in portable(catalog.settings)
    assert client.scheduler.address.startswith("tls://127.0.0.1")
    assert client.submit(backfill_jobs.in_environment, "CDINN_TILED__API_KEY").result() == key
    assert key not in repr(client.scheduler_info())
    with campaign_of(catalog) as campaign:
        done = list(by_dask(client, campaign))
    assert {outcome.raw_uid for outcome in done} == raw_uids
    assert {outcome.status for outcome in done} == {"success"}
    assert statuses(catalog) == {uid: ["success"] for uid in raw_uids}
    assert key not in caplog.text


def test_a_process_keeps_the_memory_that_each_volume_needs_again(client: Any) -> None:
    name = "MALLOC_TRIM_THRESHOLD_"
    assert client.submit(backfill_jobs.in_environment, name, pure=False).result() == os.environ.get(name)


@pytest.mark.skipif(sys.platform != "linux", reason="the masks are read from /proc")
def test_no_process_hears_ctrl_c(client: Any) -> None:
    for masks in client.run(backfill_jobs.blocked_signals).values():
        assert masks
        assert all(blocked == {signal.SIGINT, signal.SIGTERM} for blocked in masks.values())


def test_a_worker_that_is_killed_loses_nothing(
    catalog: Catalog, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw_uids = {measure(catalog) for _ in range(5)}
    # A scan that is done again may meet the second death too, before both processes are new.
    patient = catalog.settings.worker.model_copy(update={"attempts": 5})
    monkeypatch.setattr(catalog, "settings", catalog.settings.model_copy(update={"worker": patient}))
    with campaign_of(catalog) as campaign:
        outcomes = by_dask(client, campaign)
        done = [next(outcomes)]
        for pid in client.run(os.getpid).values():
            os.kill(pid, signal.SIGKILL)
        done += outcomes
    assert {outcome.raw_uid for outcome in done} == raw_uids
    assert {outcome.status for outcome in done} <= {"success", "skipped"}, [o.reason for o in done]
    assert statuses(catalog) == {uid: ["success"] for uid in raw_uids}


def test_a_scan_that_kills_its_worker_each_time_is_a_failure(
    catalog: Catalog, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw_uid = measure(catalog, sample="ball")
    monkeypatch.setattr(backfill_dask, "work", backfill_jobs.die)
    with campaign_of(catalog) as campaign:
        (done,) = by_dask(client, campaign)
    assert done.status == "failed"
    assert "died" in done.reason
    summary = catalog.latest(raw_uid)
    assert (summary.status, summary.sample) == ("failed", "ball")


def test_a_cluster_at_an_address(catalog: Catalog) -> None:
    from distributed import LocalCluster

    raw_uids = {measure(catalog) for _ in range(2)}
    key = catalog.api_key or ""
    # Anybody's cluster; its workers have the key in their environment.
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=None, env={"CDINN_TILED__API_KEY": key}
        ) as cluster,
        campaign_of(catalog) as campaign,
    ):
        done = list(carry_out_all(campaign, processes=1, scheduler=cluster.scheduler_address))
    assert {(outcome.raw_uid, outcome.status) for outcome in done} == {(uid, "success") for uid in raw_uids}


def test_a_scheduler_that_cannot_be_used_is_told(catalog: Catalog, tmp_path: Path) -> None:
    own = Settings(tiled=TiledSettings(directory=tmp_path))
    with pytest.raises(InvalidInput, match=r"set tiled\.uri"), cluster_at("tcp://127.0.0.1:1", own):
        pass
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        free = nobody.getsockname()[1]
    with (
        pytest.raises(InvalidInput, match="address of a Dask scheduler"),
        cluster_at(f"tcp://127.0.0.1:{free}", catalog.settings, connect_s=1.0),
    ):
        pass


class Hand:
    """A Dask cluster of one worker, which does nothing until told."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    def nthreads(self) -> dict[str, int]:
        return {"worker": 1}

    def submit(self, work: Any, settings: str, order: str, pure: bool) -> Any:
        self.given.append(Given(json.loads(order)["raw_uid"]))
        return self.given[-1]


class Nobody(Hand):
    """A Dask cluster whose workers have gone for good."""

    def nthreads(self) -> dict[str, int]:
        return {}


class Given:
    status = "finished"

    def __init__(self, raw_uid: str) -> None:
        self.raw_uid = raw_uid

    def add_done_callback(self, tell: Any) -> None:
        self.finish = lambda: tell(self)

    def result(self) -> dict[str, Any]:
        return {"raw_uid": self.raw_uid, "status": "success"}


def test_the_next_scan_is_claimed_before_a_worker_is_free(catalog: Catalog) -> None:
    raw_uids = [measure(catalog, time=MOMENT - n) for n in range(3)]
    standard = Standard(catalog.settings.reconstruction)
    claims, stop, hand = catalog.folder(catalog.settings.remote.claims), threading.Event(), Hand()

    def wait_for(claimed: list[str], given: list[str]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        found: tuple[Any, ...] = ()
        while found != (sorted(claimed), given) and time.monotonic() < deadline:
            time.sleep(0.1)
            found = (
                sorted({key.partition(".")[0] for key in claims} & {*raw_uids}),
                [one.raw_uid for one in hand.given],
            )
        assert found == (sorted(claimed), given)

    outcomes: list[Any] = []
    orders = plan(catalog, Wanted(), standard).orders
    with Campaign(catalog, orders, standard, stop.is_set) as campaign:
        thread = threading.Thread(target=lambda: outcomes.extend(by_dask(hand, campaign)), daemon=True)
        thread.start()
        wait_for(raw_uids[:2], raw_uids[:1])
        hand.given[0].finish()
        wait_for(raw_uids[1:], raw_uids[:2])
        stop.set()
        hand.given[1].finish()
        thread.join(PATIENCE_S)
        # The third was never begun and is given back.
        wait_for([], raw_uids[:2])
    assert [outcome.raw_uid for outcome in outcomes] == raw_uids[:2]


def test_an_answer_that_dies_with_its_worker_is_asked_for_again(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is finished, but its worker is killed before it is fetched, and so is the next one."""
    from distributed.scheduler import KilledWorker

    raw_uid, hand, answer = measure(catalog), Hand(), Given.result

    def fetch(given: Given) -> dict[str, Any]:
        if len(hand.given) == 1:
            raise KilledWorker("work", None, 0)
        return answer(given)

    monkeypatch.setattr(Given, "result", fetch)
    monkeypatch.setattr(Given, "add_done_callback", lambda given, tell: tell(given))
    with campaign_of(catalog) as campaign:
        (done,) = by_dask(hand, campaign)
    assert (done.raw_uid, done.status) == (raw_uid, "success")
    assert len(hand.given) == 2


def test_processes_lost_for_good_are_told_and_the_scans_left_to_others(catalog: Catalog) -> None:
    for _ in range(2):
        measure(catalog)
    began = time.process_time()
    with campaign_of(catalog) as campaign, pytest.raises(ReconstructionFailed, match="no process is left"):
        list(by_dask(Nobody(), campaign, alone_s=3.0))
    # It waited, and did not ask all the time.
    assert time.process_time() - began < 2.0
    assert [done.status for done in made_one_by_one(catalog)] == ["success", "success"]


def test_an_answer_that_is_lost_is_waited_for(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    raw_uid, looks = measure(catalog), []

    def told(given: Given, tell: Any) -> None:
        looks.append(time.monotonic())
        given.status = "lost" if len(looks) < 3 else "finished"
        tell(given)

    monkeypatch.setattr(Given, "add_done_callback", told)
    with campaign_of(catalog) as campaign:
        (done,) = by_dask(Hand(), campaign)
    assert done.raw_uid == raw_uid
    assert looks[-1] - looks[0] >= 2 * POLL_S


def test_a_scheduler_that_goes_away_is_told(catalog: Catalog) -> None:
    from distributed import Client, LocalCluster

    for _ in range(2):
        measure(catalog)
    cluster = LocalCluster(n_workers=0, dashboard_address=None)
    with Client(cluster, timeout=2.0, set_as_default=False) as client, campaign_of(catalog) as campaign:
        threading.Timer(1.0, cluster.close).start()
        with pytest.raises(ReconstructionFailed, match="scheduler has gone"):
            list(by_dask(client, campaign))
    assert statuses(catalog) == {}


def test_without_dask_it_is_told_what_to_install(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill_dask.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match=r"bluesky-cdinn\[backfill\]"), local_cluster(catalog.settings, 2):
        pass


# By the command.


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Serve a directory for the commands."""
    folder = tmp_path_factory.mktemp("home")
    with Catalog(settings_of(folder)) as catalog:
        catalog.start()
        yield folder


def started(home: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bluesky_cdinn.cli", "backfill", "--directory", str(home), *QUICKLY]
    return subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def cdinn(home: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, ["backfill", "--directory", str(home), *QUICKLY, *arguments, "--json"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done.exit_code, json.loads(done.stdout)


def wait_for_a_result(stream: Any) -> None:
    while "1/" not in (line := stream.readline()):
        assert line, "it ended before a scan was reconstructed"


def test_killed_at_any_time_it_goes_on(home: Path) -> None:
    with Catalog(settings_of(home)) as catalog:
        raw_uids = [measure(catalog, sample="killed") for _ in range(3)]
        assert catalog.flush(PATIENCE_S)
    choice = ("--sample", "killed")
    code, answer = cdinn(home, *choice, "--dry-run")
    assert (code, answer["to_do"], len(answer["orders"])) == (0, 3, 3)
    with started(home, *choice, "--processes", "2") as first:
        wait_for_a_result(first.stdout)
        family = psutil.Process(first.pid).children(recursive=True)
        first.kill()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    code, answer = cdinn(home, *choice, "--processes", "1")
    assert code == 0
    assert 0 < answer["to_do"] < 3
    with Catalog(settings_of(home)) as catalog:
        found = statuses(catalog)
    assert [found[uid] for uid in raw_uids] == [["success"]] * 3
    assert cdinn(home, *choice)[1]["left_alone"]["current"] == 3


def test_interrupted_it_finishes_what_runs_and_begins_no_more(home: Path) -> None:
    with Catalog(settings_of(home)) as catalog:
        for _ in range(5):
            measure(catalog, sample="interrupted")
        assert catalog.flush(PATIENCE_S)
    with started(home, "--sample", "interrupted", "--processes", "2", "--json") as running:
        wait_for_a_result(running.stderr)
        # As a terminal does: to all of them.
        os.killpg(running.pid, signal.SIGINT)
        out, err = running.communicate(timeout=120)
    answer = json.loads(out)
    assert running.returncode == 0, err
    assert answer["success"] + answer["not_begun"] == 5
    assert answer["not_begun"] > 0
    assert f"{answer['not_begun']} not begun" in err
    assert "Traceback" not in err
    with Catalog(settings_of(home)) as catalog:
        assert len(catalog.reconstructions(sample="interrupted")) == answer["success"]


def test_a_failure_is_exit_code_1(home: Path) -> None:
    with Catalog(settings_of(home)) as catalog:
        measure(catalog, sample="bad", cdi={"detector": "absent"})
        assert catalog.flush(PATIENCE_S)
    code, answer = cdinn(home, "--sample", "bad", "--processes", "1")
    assert (code, answer["failed"], answer["error"]) == (1, 1, 0)
    assert "absent" in answer["runs"][0]["reason"]


def test_a_scheduler_has_processes_of_its_own(home: Path) -> None:
    code, answer = cdinn(home, "--scheduler", "tcp://127.0.0.1:1", "--processes", "2")
    assert (code, answer["type"]) == (1, "InvalidInput")
