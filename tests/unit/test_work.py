import pytest

from modelyard import plugins
from modelyard.errors import Invalid
from modelyard.jobs.types import Resolved
from modelyard.work import KINDS


def test_the_kinds_are_those_of_the_api():
    assert {"import-dataset", "import-model", "optimise", "sweep", "train"} <= set(KINDS.names())


def test_every_kind_is_registered_under_its_own_name_and_its_config_has_a_wire_form():
    for name in KINDS:
        kind = KINDS.get(name)
        assert kind.name == name
        assert kind.config.model_json_schema()["additionalProperties"] is False
        assert not set(kind.inputs) & set(kind.optional)


def test_every_run_can_be_loaded():
    for name in KINDS:
        assert callable(plugins.load(KINDS.get(name).run))


def test_only_training_is_a_gang():
    assert [name for name in KINDS if KINDS.get(name).gang] == ["train"]


def test_a_variant_is_not_taken_for_optimisation():
    check = KINDS.get("optimise").check
    assert check is not None
    facts = {"variant": "static-int8", "original": "digits-cnn@1"}
    check({"model": Resolved("model", "model", "digits-cnn", 1, "aa", {})})
    with pytest.raises(Invalid, match=r"digits-cnn@3 is already the variant static-int8 of digits-cnn@1; optimise that one\."):
        check({"model": Resolved("model", "model", "digits-cnn", 3, "bb", facts)})
