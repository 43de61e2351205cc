"""A key that is planted in any place of a config is refused, or read as an api_key, and is in no message."""

from __future__ import annotations

import pytest
from config_builder import write_config

from medssr_dist.config.load import load_config
from medssr_dist.config.schema import Config
from medssr_dist.errors import InputError

KEY = "sk-planted-0123456789abcdef"
NAMELESS = "k3yWithoutAKnownForm"  # has no form by which it could be known


@pytest.fixture
def config_file(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED_KEY", NAMELESS)
    monkeypatch.setenv("PLANTED", KEY)
    return write_config(tmp_path / "c.yaml")


def list_places(tree: dict, prefix: str = "") -> list[str]:
    """Return the dotted keys of all values of a resolved config."""
    places = []
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            places += list_places(value, f"{key}.")
        elif not key.endswith("api_key"):
            places.append(key)
    return places


PLACES = list_places(
    Config.model_validate(
        {
            "policy": {"model": "m"},
            "synthesis": {
                "accepted": 4,
                "seeds": ["s"],
                "endpoints": [{"base_url": "http://127.0.0.1:9/v1", "model": "m"}],
            },
            "training": {"stage2": {"enabled": False}},
        }
    ).model_dump(mode="json")
)


@pytest.mark.parametrize(
    "value", [KEY, f"http://{KEY}@host/v1", f"[{KEY}]", "{a: " + KEY + "}", "'${PLANTED}'", "'${PLANTED_KEY}'"]
)
def test_a_key_is_refused_in_every_place(config_file, value):
    for place in [
        *PLACES,
        "nowhere",
        "synthesis.nowhere",
        "synthesis.endpoints.0.model",
        "synthesis.endpoints.0.apikey",
    ]:
        with pytest.raises(InputError) as error:
            load_config(config_file, [f"{place}={value}"])
        assert KEY not in str(error.value) and NAMELESS not in str(error.value), place


@pytest.mark.parametrize(
    "section",
    [
        "[{base_url: 'http://x/v1', model: m, api_key: '${PLANTED_KEY}', oops: 1}]",
        "{base_url: 'http://x/v1', model: m, api_key: '${PLANTED_KEY}'}",
        "[['${PLANTED_KEY}']]",
        "[{api_key: '${PLANTED_KEY}'}]",
    ],
)
def test_a_wrong_section_around_a_key_does_not_show_it(config_file, section):
    with pytest.raises(InputError) as error:
        load_config(config_file, [f"synthesis.endpoints={section}"])
    assert NAMELESS not in str(error.value)


@pytest.mark.parametrize(
    "key", [f"[{KEY}]", "{value: " + KEY + "}", KEY, f"'{KEY} x'", "5", "file:a\\0b", "'file:~no-such-user/k'"]
)
def test_an_api_key_must_name_where_it_is(config_file, key):
    with pytest.raises(InputError, match=r"api_key") as error:
        load_config(config_file, [f"synthesis.endpoints.0.api_key={key}"])
    assert KEY not in str(error.value)


def test_a_key_as_name_of_a_key_is_not_shown(config_file):
    with pytest.raises(InputError) as error:
        load_config(config_file, [f"synthesis.{KEY}=1"])
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://u:p@h/v1",
        "http://u@h/v1",
        "http://:p@h/v1",
        "http://h/v1?key=x",
        "http://h/v1?",
        "http://h/v1#t",
        "ftp://h/v1",
        "h/v1",
        "http://",
        "http://h:0/v1",
        "http://h:99999/v1",
        "http://[::1/v1",
        "'http://h/v 1'",
        "'http://h\\ud800/v1'",
        "'http://<host>/v1'",
        '"http://h/\\e[31m"',
    ],
)
@pytest.mark.parametrize("where", ["synthesis.endpoints.0.base_url", "voting.servers.0.base_url"])
def test_an_address_without_form_or_with_a_secret_is_refused(config_file, url, where):
    with pytest.raises(InputError, match="base_url"):
        load_config(config_file, ["voting.servers=[{base_url: 'http://h/v1'}]", f"{where}={url}"])


def test_a_key_is_read_and_not_inherited(config_file):
    overrides = ["synthesis.endpoints.0.api_key=${PLANTED_KEY}"]
    for _ in range(2):
        config = load_config(config_file, overrides)
        assert config.synthesis.endpoints[0].api_key.get_secret_value() == NAMELESS
    import os

    assert "PLANTED_KEY" not in os.environ and NAMELESS not in str(InputError(NAMELESS))
