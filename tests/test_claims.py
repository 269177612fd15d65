"""Who has which scan, and who lives: decisions without processes, claims in a real Tiled."""

import threading
import time

import pytest

from bluesky_cdinn import claims
from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.claims import MAX_DEATHS, Claim, Claims, highest, holders, is_claimed, pardon
from bluesky_cdinn.errors import InvalidInput, NotFound, StoreUnavailable, WorkerDied
from bluesky_cdinn.health import Health, pulses, troubles
from bluesky_cdinn.heartbeat import Heartbeat, PulseWatch, next_beat, post, read_all, withdraw
from bluesky_cdinn.settings import RemoteSettings


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watch(clock):
    return PulseWatch(10.0, clock)


def look(watch, clock, *heartbeats, after=0.0):
    clock.now += after
    watch.look({beat.name: beat for beat in heartbeats})


def test_a_heart_that_beats_lives_whatever_its_clock_says(watch, clock):
    beat = Heartbeat("a", since=1.0, time=5e9)
    assert not watch.lives("a", 1.0)
    for _ in range(10):
        look(watch, clock, beat, after=4.0)
        beat = next_beat(beat)
        assert watch.lives("a", 1.0)
    assert not watch.lives("a", 2.0)  # another process of that name
    for _ in range(3):
        look(watch, clock, beat, after=4.0)
    assert watch.lives("a", 1.0)
    look(watch, clock, beat, after=4.0)
    assert not watch.lives("a", 1.0)


def test_nobody_dies_of_tiled_being_away(watch, clock):
    beat = Heartbeat("a", since=1.0)
    look(watch, clock, beat)
    look(watch, clock, beat, after=60.0)
    assert watch.lives("a", 1.0)
    look(watch, clock, after=1.0)  # it said goodbye
    assert not watch.lives("a", 1.0)


def test_who_is_idle(watch, clock):
    look(watch, clock, Heartbeat("a", 1.0), Heartbeat("b", 1.0, runs=("x",)))
    assert watch.idle_besides("b")
    assert not watch.idle_besides("a")
    clock.now += 60
    assert not watch.idle_besides("b")


def test_heartbeats_are_stored_one_a_worker(catalog):
    workers = catalog.folder(f"{catalog.settings.tiled.raw}-workers")
    beat = Heartbeat("a", since=1.0, runs=("x", "y"))
    post(workers, beat)
    beat = next_beat(beat, done=3, runs=("z",))
    post(workers, beat)
    assert read_all(workers) == {"a": beat}
    assert len(workers["a"].metadata_revisions[:]) == 0
    withdraw(workers, "a")
    assert read_all(workers) == {}


def test_one_of_many_gets_a_scan_and_one_takes_it_over(settings):
    path = f"{settings.tiled.raw}-claims"
    lives = {"dead": True}
    watches = [PulseWatch(10.0) for _ in range(4)]
    for watch in watches:
        watch.lives = lambda name, since: lives.get(name, True)

    def claim_all_at_once():
        barrier, got = threading.Barrier(4), []

        def claim(number):
            with Catalog(settings) as catalog:
                mine = Claims(f"w{number}", 1.0, watches[number], lambda: None)
                folder = catalog.folder(path)
                barrier.wait()
                if mine.take(folder, "x"):
                    got.append(mine)

        threads = [threading.Thread(target=claim, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return got

    with Catalog(settings) as catalog:
        folder = catalog.folder(path)
        first = Claims("dead", 1.0, watches[0], lambda: None)
        assert first.take(folder, "x")
        assert not first.take(folder, "x")
        assert claim_all_at_once() == []
        lives["dead"] = False
        (successor,) = claim_all_at_once()
        holder = holders(folder)["x"]
        assert (holder.worker, holder.turn) == (successor.worker, 2)
        assert is_claimed(folder, "x")
        successor.release(folder, "x")
        assert (holders(folder), successor.held) == ({}, {})


def test_who_came_since_the_last_look_is_not_taken_for_dead(catalog, watch):
    folder = catalog.folder(f"{catalog.settings.tiled.raw}-claims")
    assert Claims("new", 1.0, watch, lambda: None).take(folder, "x")
    looked = Claims("other", 1.0, watch, lambda: watch.look({"new": Heartbeat("new", 1.0)}))
    assert not looked.take(folder, "x")


@pytest.fixture
def folder(catalog):
    return catalog.folder(f"{catalog.settings.tiled.raw}-claims")


def test_a_scan_that_workers_die_of_is_left_alone_until_somebody_says_so(folder, watch):
    def taken(name, **more):
        return Claims(name, 1.0, watch, lambda: None, **more).take(folder, "x")

    # What people start, and kill, is no worker that dies of it.
    assert taken("backfill", blames=False)
    assert all(taken(str(n)) for n in range(MAX_DEATHS))
    for more in ({}, {"blames": False}):
        with pytest.raises(WorkerDied, match="--retry x"):
            taken("next", **more)
    with pytest.raises(InvalidInput, match="--forget 4"):
        pardon(folder, {"4": Heartbeat("4", 1.0)}, "x")
    pardon(folder, {"4": Heartbeat("4", 2.0)}, "x")
    assert taken("next")
    with pytest.raises(InvalidInput, match="not left alone"):
        pardon(folder, {}, "x")
    with pytest.raises(NotFound):
        pardon(folder, {}, "y")


def test_who_was_taken_for_dead_and_wakes_up_hurts_nobody(folder, watch):
    late, heir, other = (Claims(name, 1.0, watch, lambda: None) for name in ("late", "heir", "other"))
    assert late.take(folder, "x")
    assert heir.take(folder, "x")
    look(watch, watch._clock, Heartbeat("late", 1.0), Heartbeat("heir", 1.0))
    late.release(folder, "x")
    # It is the heir's still.
    assert not other.take(folder, "x")
    heir.release(folder, "x")
    assert (list(folder), late.held, heir.held) == ([], {}, {})


def test_claims_that_somebody_deleted_are_released_all_the_same(folder, watch):
    first, second = (Claims(name, 1.0, watch, lambda: None) for name in ("first", "second"))
    assert first.take(folder, "x")
    assert second.take(folder, "x")
    folder.delete_contents("x.1")
    second.release(folder, "x")
    assert (list(folder), second.held) == ([], {})
    first.release(folder, "x")
    assert first.held == {}


def test_a_claim_whose_answer_got_lost_is_had(folder, watch, monkeypatch):
    mine, make = Claims("a", 1.0, watch, lambda: None), claims._make

    def lost(*arguments):
        make(*arguments)
        raise StoreUnavailable("the answer got lost")

    with monkeypatch.context() as patch:
        patch.setattr(claims, "_make", lost)
        with pytest.raises(StoreUnavailable):
            mine.take(folder, "x")
    look(watch, watch._clock, Heartbeat("a", 1.0))
    assert mine.take(folder, "x")
    assert list(mine.held) == ["x"]


def test_the_last_claim_holds():
    claims = [Claim("x", 2, "b", 1.0), Claim("x", 1, "a", 1.0), Claim("y", 1, "c", 1.0)]
    assert {uid: claim.worker for uid, claim in highest(claims).items()} == {"x": "b", "y": "c"}


def found(*workers, silent=(), claims=(), fault="", put_aside=()):
    beats = tuple(Heartbeat(name, 1.0) for name in workers)
    return Health("", fault, 0, put_aside, beats, dict.fromkeys(workers, 99.0), frozenset(silent), claims)


@pytest.mark.parametrize(
    ("health", "said"),
    [
        (found(), []),
        (found("a", claims=(Claim("x", 1, "a", 1.0),)), []),
        (found(fault="it is off"), ["Tiled can't be reached: it is off"]),
        (found(put_aside=("spool/1.rejected",)), ["Tiled refused a run: look at spool/1.rejected"]),
        (found("a", "b", silent=("a",)), ["worker a has been silent for 99 s"]),
        (found(claims=(Claim("x", 1, "a", 1.0),)), ["1 scans were begun and no worker is there"]),
        (found("b", claims=(Claim("x", 1, "a", 1.0),)), []),
        (found("b", claims=(Claim("x", 6, "a", 1.0, deaths=5),)), ["scan x is left alone"]),
    ],
)
def test_what_needs_a_person(health, said):
    lines = troubles(health)
    assert len(lines) == len(said)
    for line, beginning in zip(lines, said, strict=True):
        assert line.startswith(beginning)


def test_who_beats_lives_whatever_its_clock_says():
    remote, now = RemoteSettings(heartbeat_s=0.2, silent_s=30.0), time.time()
    times = {"fine": now, "behind": now - 600, "ahead": now + 600, "dead": now - 600, "dead ahead": now + 600}
    first = {name: Heartbeat(name, 1.0, time=at) for name, at in times.items()}
    later = first | {name: next_beat(first[name]) for name in ("behind", "ahead")}
    ages, silent = pulses(first, lambda: later, remote)
    assert silent == {"dead", "dead ahead"}
    assert (ages["behind"], ages["ahead"], round(ages["dead"], -1)) == (0.0, 0.0, 600.0)
    # Nobody is waited for where all is well.
    assert pulses({"fine": first["fine"]}, lambda: pytest.fail("looked again"), remote)[1] == frozenset()
