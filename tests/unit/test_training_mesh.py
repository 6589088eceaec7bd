import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.errors import Invalid
from modelyard.training.mesh import Limits, Mesh, check, parse, propose

SIZES = st.integers(1, 4)
GIB = 1 << 30


@given(SIZES, SIZES, SIZES, SIZES)
def test_every_rank_has_a_place_of_its_own(data, shard, tensor, pipe):
    mesh = Mesh(data=data, shard=shard, tensor=tensor, pipe=pipe)
    places = [mesh.place(rank) for rank in range(mesh.ranks)]
    assert len(set(places)) == mesh.ranks
    assert {place.replica for place in places} == set(range(mesh.replicas))
    assert mesh.ranks == 1 or Mesh(**parse(str(mesh))) == mesh
    check(str(mesh), mesh.ranks)


def test_neighbours_compute_the_same_layer():
    mesh = Mesh(data=2, shard=2, tensor=2, pipe=2)
    assert [mesh.place(rank).tensor for rank in range(4)] == [0, 1, 0, 1]
    assert [mesh.place(rank).pipe for rank in (0, 7, 8, 15)] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("depth=2", "the axis 'depth'; there are data, shard, tensor and pipe"),
        ("data=2,data=2", "'data' twice"),
        ("data=0", "0 ranks"),
        ("data=-1", "-1 ranks"),
        ("shard", "no ranks"),
        ("data=²", "² ranks"),
        ("data=" + "9" * 9, "ranks; a whole number"),
        ("", "names the axis ''"),
    ],
)
def test_what_is_no_mesh_is_refused(text, told):
    with pytest.raises(Invalid, match=told):
        check(text)


def test_a_mesh_of_other_ranks_is_refused_with_the_product():
    with pytest.raises(Invalid, match=r"of 8 ranks \(data 2 × shard 2 × tensor 2\); the job has 4: give --ranks 8"):
        check("data=2,shard=2,tensor=2", 4)
    check("auto", 4)
    check("data", 4)


@pytest.mark.parametrize(
    ("parameters", "limits", "proposed"),
    [
        (10_000_000, Limits(), Mesh(data=8)),  # fits
        (400_000_000, Limits(unit=10_000_000), Mesh(data=4, shard=2)),
        (1_200_000_000, Limits(unit=10_000_000), Mesh(data=2, shard=4)),
        (1_200_000_000, Limits(unit=400_000_000, tensor=4), Mesh(data=1, shard=4, tensor=2)),
    ],
)
def test_it_proposes_the_axes_that_talk_least(parameters, limits, proposed):
    mesh, why = propose(parameters, 16, 8, 8 * GIB, limits)
    assert mesh == proposed
    assert f"{parameters:,} parameters" in why


def test_it_says_when_nothing_holds_the_model():
    with pytest.raises(Invalid, match="No mesh of 2 ranks holds this model: 4,000,000,000 parameters"):
        propose(4_000_000_000, 16, 2, 8 * GIB, Limits(unit=1_000_000, tensor=2))


@given(
    st.integers(1, 10**11),
    st.integers(1, 64),
    st.integers(1 << 20, 1 << 40),
    st.integers(1, 8),
    st.none() | st.integers(1, 10**9),
)
def test_what_it_proposes_is_of_these_ranks_and_holds_the_model(parameters, ranks, memory, tensor, unit):
    try:
        mesh, _ = propose(parameters, 16, ranks, memory, Limits(unit=unit, tensor=tensor))
    except Invalid:
        return
    assert mesh.ranks == ranks
    assert tensor % mesh.tensor == 0
    assert parameters * 16 / (mesh.shard * mesh.tensor) <= memory
