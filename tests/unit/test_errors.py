"""The error tree says whose fault it is, survives a wire, and names what is near."""

from __future__ import annotations

import pytest

from modelyard import errors
from modelyard.errors import CallerError, Internal, Invalid, ModelyardError, NotFound, OurError, Unsafe, from_wire, not_found

EVERY = list(errors._tree(ModelyardError))


@pytest.mark.parametrize("cls", EVERY, ids=lambda cls: cls.__name__)
def test_every_class_has_a_default_message_a_code_and_a_fault(cls: type[ModelyardError]):
    error = cls()
    assert error.message == str(error) == (cls.__doc__ or "").strip()
    assert error.message.endswith(".") or error.message.endswith("'.")
    assert "code" in vars(cls)
    assert error.fault == ("caller" if issubclass(cls, CallerError) else "ours")


@pytest.mark.parametrize("cls", EVERY, ids=lambda cls: cls.__name__)
def test_an_error_is_the_same_class_on_the_other_side_of_a_wire(cls: type[ModelyardError]):
    sent = cls("what was wrong")
    received = from_wire(sent.code, sent.message)
    assert type(received) is cls
    assert received.message == "what was wrong"


def test_an_unknown_code_is_internal():
    assert type(from_wire("from_the_future", "x")) is Internal


def test_faults_share_an_ancestor():
    assert issubclass(Unsafe, Invalid)
    assert issubclass(Invalid, CallerError)
    assert not issubclass(Internal, CallerError)
    assert issubclass(Internal, OurError)


@pytest.mark.parametrize(
    ("name", "existing", "message"),
    [
        ("digts", ["digits", "cifar"], "No model 'digts'. Did you mean 'digits'? There are: 'cifar', 'digits'."),
        ("zebra", ["digits"], "No model 'zebra'. There are: 'digits'."),
        ("x", [], "No model 'x'. There is no model yet."),
        ("none", [f"m{i:02}" for i in range(12)], "There are: " + ", ".join(f"'m{i:02}'" for i in range(10)) + ", …."),
    ],
)
def test_not_found_says_what_there_is(name: str, existing: list[str], message: str):
    error = not_found("model", name, iter(existing))
    assert isinstance(error, NotFound)
    assert error.message.endswith(message)


def test_of_what_is_numberless_the_newest_are_shown_in_their_order():
    error = not_found("job", "bb11", ["d400", "a700", "bb12"], newest=2)
    assert error.message == "No job 'bb11'. Did you mean 'bb12'? The newest are: 'd400', 'a700', …."
    assert not_found("job", "zz", [], newest=2).message == "No job 'zz'. There is no job yet."
