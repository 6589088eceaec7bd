"""Where replicas go: apart from their like, then where there is most room, then near."""

from __future__ import annotations

from modelyard.jobs.ray.placement import HERE, Place, choose

GIB = 1 << 30


def test_the_loss_of_one_machine_costs_a_group_least() -> None:
    places = [Place("a", "m1", GIB, ["g"]), Place("b", "m1", GIB, []), Place("c", "m2", GIB, ["x", "x", "x"])]
    assert choose("g", places).name == "c"
    assert choose("other", places).name == "b"


def test_then_the_fewest_for_the_memory_then_the_gateways_machine() -> None:
    assert choose("g", [Place("a", "m", GIB, ["x"]), Place("b", "n", 4 * GIB, ["x", "x"])]).name == "b"
    assert choose("g", [Place("a", "m", GIB, []), Place("b", HERE, GIB, [])]).name == "b"
    assert choose("g", [Place("b", "m", GIB, []), Place("a", "n", GIB, [])]).name == "a"


def test_a_doubtful_node_is_better_than_none() -> None:
    doubtful = Place("a", HERE, GIB, [], doubtful=True)
    assert choose("g", [doubtful, Place("b", "m", GIB, ["g"] * 9)]).name == "b"
    assert choose("g", [doubtful]) is doubtful
