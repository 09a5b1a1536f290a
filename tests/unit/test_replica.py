"""A replica's views: one object each until a part of it changes, and always what was told last."""

from __future__ import annotations

import random
from dataclasses import replace

from support.router_world import config_of, instances_of

from llmrouter.domain import EngineSignal, Instance, Load
from router_grpc.replica import SIGNAL_LIFETIME_S, LoadReplica

INSTANCES = tuple(instances_of(config_of("a:1", "b:1", "c:1")))
WHAT = ("absorb", "subtract", "replace", "signal", "believe", "snapshot of one")


class Told:
    """A replica, and what it was told."""

    def __init__(self, rng: random.Random) -> None:
        self.replica = LoadReplica()
        self.rng = rng
        self.now_s = 0.0
        self.loads = {one.instance_id: Load() for one in INSTANCES}
        self.believed: dict[str, tuple[Instance, Instance]] = {}

    def tell(self, what: str) -> set[str]:
        """Tells it something; returns whose views may be others by it."""
        self.now_s += self.rng.choice([0.0, 0.1, 4.0])
        one, load = self.rng.choice(INSTANCES), Load(self.rng.randrange(3), 5)
        name = one.instance_id
        if what == "absorb":
            self.replica.absorb({name: load})
            self.loads[name] = load
        elif what == "subtract":
            self.replica.subtract(name, load)
            self.loads[name] = self.replica.load_of(name)
        elif what == "replace":
            self.loads[name] = load
            self.replica.replace({key: load for key, load in self.loads.items() if load.requests}, now_s=self.now_s)
            return set(self.loads)
        elif what == "signal":
            self.replica.note_signal(one, EngineSignal(self.now_s, self.rng.randrange(9), 0, 0.5))
        elif what == "believe":
            profile = replace(one.profile, kv_tokens=self.rng.randrange(1, 3) * 100_000)
            self.believed |= {name: (one, replace(one, profile=profile))}
            self.replica.believe(self.believed)
        else:
            self.replica.snapshot([one], now_s=self.now_s)
            return set()
        return {name}


def test_a_snapshot_shows_what_was_told_last_and_other_views_stand() -> None:
    rng = random.Random(4)
    told = Told(rng)
    before = told.replica.snapshot(INSTANCES, now_s=0.0).views
    for _ in range(400):
        what = rng.choice(WHAT)
        touched = told.tell(what)
        views = told.replica.snapshot(INSTANCES, now_s=told.now_s).views
        for was, view, declared in zip(before, views, INSTANCES, strict=True):
            name = declared.instance_id
            assert view.load == (told.loads[name] if told.loads[name].requests else Load())
            assert view.instance == told.believed.get(name, (declared, declared))[1]
            assert view is was or name in touched
            if what == "replace" and view.signal is not None:
                assert told.now_s - view.signal.scraped_at_s <= SIGNAL_LIFETIME_S
        before = views


def test_what_is_told_again_changes_no_view() -> None:
    replica, loads = LoadReplica(), {"a:1": Load(1, 10)}
    replica.replace(loads, now_s=0.0)
    seen = replica.snapshot(INSTANCES, now_s=0.0).views
    replica.replace(dict(loads), now_s=1.0)
    replica.absorb(loads)
    replica.believe({})
    assert replica.snapshot(INSTANCES, now_s=1.0).views is seen


def test_an_instance_is_found_in_any_snapshot_that_has_it() -> None:
    replica = LoadReplica()
    snapshot = replica.snapshot(INSTANCES, now_s=0.0)
    fewer = replace(snapshot, views=snapshot.views[1:])
    for view in snapshot.views:
        name = view.instance.instance_id
        assert replica.find(snapshot, name) is view
        assert replica.find(fewer, name) is (view if view in fewer.views else None)
    assert replica.find(snapshot, "stranger") is None


def test_instances_that_are_gone_are_forgotten() -> None:
    replica = LoadReplica()
    first = replica.snapshot(INSTANCES, now_s=0.0).views
    replica.forget_except(["a:1"])
    again = replica.snapshot(INSTANCES, now_s=0.0).views
    assert again[0] is first[0]
    assert again[1] is not first[1]
