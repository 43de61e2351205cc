"""Which proxy the environment sets for an address."""

import pytest
from yarl import URL

from medssr_dist.errors import InputError
from medssr_dist.runtime.http.proxy import find_proxy

NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
API = URL("http://api.example/v1")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("name", "value", "proxy"),
    [
        ("http_proxy", "http://proxy:3128", "http://proxy:3128"),
        ("HTTP_PROXY", "proxy.example:8080", "http://proxy.example:8080"),
        ("http_proxy", "10.0.0.1:9", "http://10.0.0.1:9"),
        ("all_proxy", "http://u:p%40w@proxy:3128", "http://u:p%40w@proxy:3128"),
        ("http_proxy", "https://proxy:443", "https://proxy"),
        ("https_proxy", "http://proxy:3128", None),
        ("http_proxy", "  ", None),
    ],
)
def test_forms_of_a_proxy(monkeypatch, name, value, proxy):
    monkeypatch.setenv(name, value)
    assert find_proxy(API) == proxy
    assert find_proxy(URL("http://127.0.0.1:8000/v1")) is find_proxy(URL("http://127.0.0.2:8000/v1")) is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("socks5://u:secret@proxy:1080", "HTTP_PROXY = socks5://proxy...: only proxies with http"),
        ("socks5h://proxy:1080", "HTTP_PROXY = socks5h://"),
        ("http://proxy:port", "HTTP_PROXY is no address"),
        ("http://", "HTTP_PROXY (names no host|is no address)"),
        ("http://[::1", "HTTP_PROXY is no address"),
    ],
)
def test_what_cannot_be_used_is_named_at_once(monkeypatch, value, words):
    monkeypatch.setenv("HTTP_PROXY", value)
    with pytest.raises(InputError, match=words) as error:
        find_proxy(API)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("no_proxy", "host", "exempt"),
    [
        ("inside.example", "inside.example", True),
        ("inside.example", "a.inside.example", True),
        (".inside.example", "a.inside.example", True),
        ("*.inside.example", "a.inside.example", True),
        ("inside.example", "outside-inside.example", False),
        ("INSIDE.example", "inside.Example", True),
        ("10.0.0.0/8, x", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.*", "10.1.2.3", True),
        ("10.1.", "10.1.2.3", True),
        ("10.1.*", "10.10.2.3", False),
        ("fd00::/8", "[fd00::1]", True),
        ("[fd00::1]", "[fd00::1]", True),
        ("*", "anything", True),
        ("api.example:80", "api.example", True),
        ("api.example:81", "api.example", False),
        ("a,,b ; c/9999", "d", False),
        ("", "d", False),
    ],
)
def test_no_proxy(monkeypatch, no_proxy, host, exempt):
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert (find_proxy(URL(f"http://{host}/v1")) is None) is exempt
