"""Branches are made, written and deleted while a disk is full now and then, processes get no
memory or are killed one by one, and the clock jumps.  ``make torture TORTURE="--part memory"`` and
its sisters do it for as long as wanted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from ab_cluster import Cluster
from ab_weather import WEATHER_SETTINGS, Weather

KINDS: dict[str, Callable[[Weather], None]] = {
    "full-base": lambda weather: weather.full_disk(range(2), "base"),
    "full-store": lambda weather: weather.full_disk(range(2), "agent_branch"),
    "memory": lambda weather: weather.no_memory(range(3)),
    "clock": lambda weather: weather.jumping_clock(range(2)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_weather(make_cluster: Callable[..., Cluster], kind: str, seed: int) -> None:
    """What was answered is believed: done or refused; all of it holds, and nothing is left."""
    weather = Weather(make_cluster(kind, WEATHER_SETTINGS), f"{seed}/{kind}")
    KINDS[kind](weather)
    print(kind, dict(weather.done))
