"""Hosts of a PostgreSQL URL: every form that libpq and SQLAlchemy know, made one."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from mgf.common.exceptions import AppConfigError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

_DEFAULT_PORT = "5432"  # https://www.postgresql.org/docs/current/libpq-connect.html

_ADDRESS = re.compile(r"(?:\[(?P<ipv6>[^\]]+)\]|(?P<name>[\w.%-]*))(?::(?P<port>\d*))?")

# Quotes nothing: the host of a malformed URL may be a part of its password.
_MALFORMED = (
    "the hosts of the database URL are malformed; write host:port, several as host1:port1,"
    "host2:port2, an IPv6 address as [::1], a socket folder as ?host=/folder, with ports from 1 "
    "to 65535, one for all hosts or one for each; percent-encode the characters @ : / ? # of the "
    "password"
)


class _Host(NamedTuple):
    name: str  # empty: the driver's default
    port: str  # empty: the driver's default


def unify_hosts(url: URL) -> URL:
    """Return a PostgreSQL URL with its hosts where both drivers' dialects find them.

    One host stands before the database. A socket folder, or several hosts, which a driver tries
    in their order, stand in the query as ``host=h1,h2&port=1,2``: the one form in which
    SQLAlchemy leaves colons in a host alone.

    Raises:
        AppConfigError: a host or a port that is none, or ports that do not match the hosts.
    """
    hosts = _hosts(url)
    query = {name: value for name, value in url.query.items() if name not in {"host", "port"}}
    host, port = hosts[0]
    if len(hosts) == 1 and not _is_socket(host):
        bare = url._replace(host=host or None, port=int(port) if port else None)
        return bare.set(query=query)
    if len(hosts) > 1:
        hosts = [_Host(host, port or _DEFAULT_PORT) for host, port in hosts]
    query["host"] = ",".join(host for host, _ in hosts)
    if port or len(hosts) > 1:
        query["port"] = ",".join(port for _, port in hosts)
    return url._replace(host=None, port=None).set(query=query)


def _hosts(url: URL) -> list[_Host]:
    hosts = [_read_host(text) for text in (url.host or "").split(",")]
    default = "" if url.port is None else str(url.port)
    if "host" in url.query:
        # It wins over what stands before the database, and leaves that one's port in force.
        default = default or hosts[0].port
        hosts = [_read_host(t) for t in ",".join(url.normalized_query["host"]).split(",")]
    ports = ",".join(url.normalized_query.get("port", ())).split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    if len(ports) != len(hosts) or (len(hosts) > 1 and not all(host.name for host in hosts)):
        raise AppConfigError(_MALFORMED)
    return [
        _Host(host.name, _read_port(port or host.port or default))
        for host, port in zip(hosts, ports, strict=True)
    ]


def _read_host(text: str) -> _Host:
    if _is_socket(text) or _is_ipv6(text):
        return _Host(text, "")
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise AppConfigError(_MALFORMED)
    name, address, port = match["name"], match["ipv6"], match["port"] or ""
    if address is None:
        # libpq's way to write a socket folder before the database.
        return _Host(unquote(name) if name[:3].lower() in {"%2f", "%40"} else name, port)
    if not _is_ipv6(address):
        raise AppConfigError(_MALFORMED)
    return _Host(address.replace("%25", "%"), port)  # "%" stands before a link-local zone


def _is_socket(host: str) -> bool:
    return host.startswith(("/", "@"))  # "@": Linux's abstract namespace


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _read_port(text: str) -> str:
    if text and not (re.fullmatch("[0-9]{1,5}", text) and 1 <= int(text) <= 65535):
        raise AppConfigError(_MALFORMED)
    return text.lstrip("0")
