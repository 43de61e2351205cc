"""The proxy of the environment for an address, as curl would choose it; what cannot be used is refused at once."""

from __future__ import annotations

import os
from ipaddress import ip_address, ip_network

from yarl import URL

from medssr_dist.errors import InputError

_SCHEMES = ("http", "https")


def find_proxy(url: URL) -> str | None:
    """Return the proxy that the environment sets for `url`, or None; loopback has none.

    Looked up once per client: aiohttp's trust_env option would look it up for each request, and knows neither
    `all_proxy` nor networks in `no_proxy`.

    Raises:
        InputError: the proxy is no address, or speaks a protocol other than HTTP.
    """
    if url.host is None or _is_loopback(url.host) or _is_exempt(url.host, url.port):
        return None
    for name in (f"{url.scheme}_proxy", f"{url.scheme}_proxy".upper(), "all_proxy", "ALL_PROXY"):
        if value := os.environ.get(name, "").strip():
            return _check_proxy(name, value)
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_proxy(name: str, value: str) -> str:
    """Return the proxy's URL; `host:port` is one of HTTP. Its user name and password are never repeated."""
    try:
        proxy = URL(value if "://" in value else f"http://{value}")
        host, port = proxy.host, proxy.port
    except ValueError:
        raise InputError(f"{name} is no address of a proxy; set it to the form http://proxy.example:3128") from None
    if proxy.scheme not in _SCHEMES:
        raise InputError(
            f"{name} = {proxy.scheme}://{host or ''}...: only proxies with http:// or https:// can be used; set it to "
            "one, or add the endpoint's host to no_proxy"
        )
    if not host or not port:
        raise InputError(f"{name} names no host; set it to the form http://proxy.example:3128")
    return str(proxy)


def _is_exempt(host: str, port: int | None) -> bool:
    """Whether `no_proxy` has the host: by name, domain, address, network (10.0.0.0/8, 10.*) or `*`, port or not."""
    names = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return any(_matches(entry, host, port) for entry in names.replace(",", " ").split())


def _matches(entry: str, host: str, port: int | None) -> bool:
    if entry == "*":
        return True
    try:
        return ip_address(host) in ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        pass
    if entry.rstrip("*").endswith(".") and host.startswith(entry.rstrip("*")):  # 10.0.* or 10.0.
        return True
    name, _, wanted_port = entry.rpartition(":") if entry.count(":") == 1 or "]:" in entry else (entry, "", "")
    if wanted_port and wanted_port != str(port):
        return False
    name = name.strip("[]").removeprefix("*").strip(".").casefold()
    host = host.casefold().strip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))
