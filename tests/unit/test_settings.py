"""Settings, and the page about them."""

from pathlib import Path

import pytest

from app.configuration import page
from app.settings import Settings, SettingsInvalid, allowed, read_settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def test_the_page_about_the_settings_is_what_they_are() -> None:
    assert PAGE.read_text() == page(), "write it again: python -m app.configuration > docs/configuration.md"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_says_what_it_is_for(name: str) -> None:
    assert (Settings.model_fields[name].description or "").endswith(".")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("port", "a whole number, at least 0, at most 65535"),
        ("predict_timeout_seconds", "a number, above 0"),
        ("allow_unsandboxed", "true or false"),
        ("log_level", "one of debug, info, warning, error"),
        ("metrics_dir", "a path"),
        ("redis_url", "text"),
    ],
)
def test_what_a_setting_may_be_is_said_in_words(name: str, words: str) -> None:
    assert allowed(Settings.model_fields[name]) == words


def test_every_wrong_variable_is_named_with_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTET_PORT", "70000")
    monkeypatch.setenv("OCTET_LOG_LEVEL", "loud")
    with pytest.raises(SettingsInvalid) as raised:
        read_settings()
    assert str(raised.value).splitlines() == [
        "OCTET_PORT is '70000', but must be a whole number, at least 0, at most 65535: set it so, or unset it.",
        "OCTET_LOG_LEVEL is 'loud', but must be one of debug, info, warning, error: set it so, or unset it.",
    ]


def test_without_a_redis_the_sentence_says_how_to_get_one() -> None:
    with pytest.raises(SettingsInvalid, match="OCTET_REDIS_URL: set it, or run `octet serve`"):
        Settings(redis_url=None).require_redis()
