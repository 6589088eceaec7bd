"""The values of the catalogue and their JSON."""

import pytest
from pydantic import ValidationError

from modelyard.catalogue.types import NAME, AliasRequest, Name, Parent, Version
from modelyard.db import now
from modelyard.jobs import types as jobs

VERSION = Version(1, "p", "model", "m", 3, "h" * 64, None, {"accuracy": 0.5}, "j", now(), ("best",))


def test_a_version_and_a_name_have_a_reference_and_json_without_inner_numbers():
    assert VERSION.reference == "m@3"
    shown = VERSION.to_json()
    assert (shown["version"], shown["reference"], shown["aliases"]) == (3, "m@3", ["best"])
    assert not {"id", "project"} & set(shown)
    assert Name(VERSION, 2, {"best": 3}).to_json()["latest"] == 3


def test_a_parent_is_a_version_or_a_bare_artefact():
    assert Parent.of("dataset", VERSION) == Parent("dataset", "model", "m", 3, "h" * 64)
    assert Parent.of("x", VERSION).reference == "m@3"
    assert Parent("code", "artefact", None, None, "c").reference == "artefact:c"


def test_an_alias_request_is_strict():
    assert AliasRequest(version=1).version == 1
    with pytest.raises(ValidationError):
        AliasRequest.model_validate({"version": 1, "name": "x"})


def test_jobs_and_catalogue_agree_on_names():
    assert jobs.NAME == NAME
