from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.errors import Invalid
from modelyard.optimisation.steps.config import Distil, Finetune, Prune, Qat, Quantize
from modelyard.optimisation.steps.text import parse, show

SHARES = st.floats(0, 0.99)
RATES = st.none() | st.floats(1e-6, 1)
WORDS = st.text(min_size=1, max_size=12)
EPOCHS = st.integers(1, 50)
VALUES = st.integers(-9, 9) | st.booleans() | WORDS | st.floats(-9, 9)
STEPS = st.one_of(
    st.builds(
        Prune,
        channels=st.floats(0.01, 0.99),
        heads=SHARES,
        blocks=SHARES,
        layers=st.dictionaries(WORDS, SHARES, max_size=3),
        importance=st.sampled_from(["l1", "l2", "taylor"]),
        multiple=st.integers(1, 64),
        finetune=st.integers(0, 9),
        lr=RATES,
    ),
    st.builds(
        Prune,
        weights=st.floats(0.01, 0.99),
        by=st.sampled_from(["magnitude", "wanda", "sparsegpt"]),
        rows=st.none() | st.integers(1, 99),
    ),
    st.builds(Prune, weights=st.just(0.5), pattern=st.just("2:4")),
    st.builds(Finetune, epochs=EPOCHS, lr=RATES),
    st.builds(Qat, epochs=EPOCHS, lr=RATES),
    st.builds(
        Distil,
        epochs=EPOCHS,
        lr=RATES,
        alpha=st.floats(0.1, 1),
        temperature=st.floats(0.5, 9),
        features=st.floats(0, 9),
        student=st.none() | st.dictionaries(WORDS, VALUES | st.dictionaries(WORDS, VALUES, max_size=2), min_size=1, max_size=3),
    ),
    st.builds(
        Quantize,
        method=st.sampled_from(["static-int8", "dynamic-int8", "weights-int8"]),
        calibration=st.sampled_from(["minmax", "entropy", "percentile"]),
        percentile=st.floats(51, 100),
        rows=st.integers(1, 999),
        per_channel=st.booleans(),
        float_layers=st.lists(WORDS, max_size=3).map(tuple),
        sensitive=st.integers(0, 9) | st.just("auto"),
    ),
)


@given(STEPS)
def test_what_is_shown_is_read_as_the_same_step(step) -> None:
    assert parse(show(step)) == step


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("prune:channels=0.5,finetune=3", Prune(channels=0.5, finetune=3)),
        ('prune:layers={"features.6.*":0.5}', Prune(layers={"features.6.*": 0.5})),
        ("prune:weights=0.5,pattern=2:4,by=sparsegpt", Prune(weights=0.5, pattern="2:4", by="sparsegpt")),
        ("quantize", Quantize()),
        ("quantize:static-int8", Quantize()),
        ("quantize:dynamic-int8,sensitive=auto", Quantize(method="dynamic-int8", sensitive="auto")),
        ("quantize:float_layers=head+stem.0", Quantize(float_layers=("head", "stem.0"))),
        ('quantize:static-int8, float_layers=["a,b"]', Quantize(float_layers=("a,b",))),
        ("distil:student.width=12,student.blocks=2", Distil(student={"width": 12, "blocks": 2})),
        ('distil:student={"width":12}, epochs=2', Distil(student={"width": 12}, epochs=2)),
        ("qat:epochs=1,lr=1e-4", Qat(epochs=1, lr=1e-4)),
    ],
)
def test_it_reads_what_people_write(text: str, step) -> None:
    assert parse(text) == step


def test_the_shortest_text_is_shown() -> None:
    assert show(Prune(channels=0.5, finetune=3)) == "prune:channels=0.5,finetune=3"
    assert show(Quantize()) == "quantize:static-int8"
    assert show(Quantize(float_layers=("head", "stem"))) == "quantize:static-int8,float_layers=head+stem"
    assert show(Distil()) == "distil"
    assert show(Distil(student={"width": 8})) == 'distil:student={"width":8}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prun:channels=0.5", "'prun' is no step of optimisation; did you mean 'prune'"),
        ("unpad:mask=1", "'unpad' has no options; write it alone"),
        ("squeeze", "there are prune, finetune, distil, qat, unpad, quantize"),
        ("prune:chanels=0.5", "'chanels' is not an option of 'prune'; did you mean 'channels'"),
        ("prune:channels=1", "'channels' is 1; expected less than 1"),
        ("prune:finetune=2", "leaves nothing out"),
        ("prune:weights=1", "'weights' is 1; expected less than 1"),
        ("prune:weights=0.4,pattern=2:4", "the pattern 2:4 leaves out half of the weights: give weights=0.5"),
        ("prune:weights=0.5,finetune=1,heads=0.5", "finetune, heads: no option beside weights"),
        ("prune:channels=0.5,by=wanda,pattern=2:4", "pattern: no option without weights"),
        ("prune:0.5", "'0.5' is not OPTION=VALUE; the options of 'prune' are channels, heads"),
        (
            "quantize:int4",
            "'method' is \"int4\"; expected 'static-int8', 'dynamic-int8', 'weights-int8', 'q8_0', 'q5_0', 'q4_1' or 'q4_0'",
        ),
        ("quantize:rows=5,static-int8", "'static-int8' is not OPTION=VALUE"),
        ("quantize:sensitive=-1", "'sensitive"),
        ("distil:student.width=1,student.width=2", "'student.width' is said twice"),
        ("distil:student=3,student.width=2", "'student' has a value already"),
        ("distil:alpha=0", "the teacher has no part in it"),
        ("qat:lr=NaN", "'lr' is NaN"),
    ],
)
def test_what_is_wrong_is_said_with_what_there_is(text: str, said: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse(text)
    assert said in refused.value.message
