"""The list of settings is frozen here on purpose: adding one is a decision, and it is documented."""

from __future__ import annotations

from pathlib import Path

from modelyard.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_every_setting_is_documented_and_described() -> None:
    page = PAGE.read_text()
    for name, field in Settings.model_fields.items():
        assert field.description, f"{name} has no description"
        assert f"`{name}`" in page or f"`MODELYARD_{name.upper()}`" in page, f"{name} is missing in docs/settings.md"


def test_settings_are_frozen() -> None:
    assert Settings.model_config["frozen"]
    assert Settings.model_config["extra"] == "forbid"
