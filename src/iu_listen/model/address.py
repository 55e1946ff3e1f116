"""Where a database is: the one way in for every connection string, service file and PG* variable.

Takes what libpq takes: a URI, or ``name=value`` pairs. What is said in the string wins over the service file, and that
over the environment. Every parameter of libpq either does what it does there or is refused by its name; a name that
libpq does not have is a setting for the server. No error holds any value: whatever a string is taken for, a part of it
may be a password.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from iu_listen.model.errors import ConfigurationError

#: Parameters of libpq that also come from the environment.
VARIABLES: Final = {
    "host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT", "dbname": "PGDATABASE", "user": "PGUSER",
    "password": "PGPASSWORD", "passfile": "PGPASSFILE", "service": "PGSERVICE", "options": "PGOPTIONS",
    "sslmode": "PGSSLMODE", "sslcert": "PGSSLCERT", "sslkey": "PGSSLKEY", "sslrootcert": "PGSSLROOTCERT",
    "sslcrl": "PGSSLCRL", "sslsni": "PGSSLSNI", "sslnegotiation": "PGSSLNEGOTIATION",
    "sslcompression": "PGSSLCOMPRESSION", "sslcertmode": "PGSSLCERTMODE", "requirepeer": "PGREQUIREPEER",
    "requiressl": "PGREQUIRESSL", "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION", "channel_binding": "PGCHANNELBINDING",
    "gssencmode": "PGGSSENCMODE", "gssdelegation": "PGGSSDELEGATION", "krbsrvname": "PGKRBSRVNAME",
    "gsslib": "PGGSSLIB", "connect_timeout": "PGCONNECT_TIMEOUT", "client_encoding": "PGCLIENTENCODING",
    "application_name": "PGAPPNAME", "target_session_attrs": "PGTARGETSESSIONATTRS",
    "load_balance_hosts": "PGLOADBALANCEHOSTS", "require_auth": "PGREQUIREAUTH",
    "min_protocol_version": "PGMINPROTOCOLVERSION", "max_protocol_version": "PGMAXPROTOCOLVERSION",
}  # fmt: skip

#: Parameters that the driver obeys.
DRIVER: Final = frozenset({
    "user", "password", "passfile", "dbname", "options", "sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl",
    "sslpassword", "sslnegotiation", "ssl_min_protocol_version", "ssl_max_protocol_version", "krbsrvname", "gsslib",
})  # fmt: skip

SECRETS: Final = ("password", "sslpassword")

#: Parameters that change nothing here with these values, and cannot be obeyed with any other.
ONLY: Final[Mapping[str, tuple[str, ...]]] = {
    "channel_binding": ("disable", "prefer"), "gssencmode": ("disable", "prefer"), "gssdelegation": ("0",),
    "sslsni": ("1",), "sslcompression": ("0",), "sslcertmode": ("allow",), "requiressl": ("0",), "requirepeer": (),
    "require_auth": (), "client_encoding": ("utf8", "utf-8"), "min_protocol_version": ("3.0",),
    "max_protocol_version": ("3.0", "3.2", "latest"), "replication": ("0", "off", "false", "no"), "oauth_issuer": (),
    "oauth_client_id": (), "oauth_client_secret": (), "oauth_scope": (), "scram_client_key": (),
    "scram_server_key": (), "sslcrldir": (), "authtype": (), "tty": (), "sslkeylogfile": (),
}  # fmt: skip

#: Parameters whose value is one of a few.
CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    "load_balance_hosts": ("disable", "random"),
    "keepalives": ("0", "1"),
}
#: Parameters that are numbers.
NUMBERS: Final = ("connect_timeout", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout")
#: Parameters that name a file which has to be there.
FILES: Final = ("sslcert", "sslkey", "sslrootcert", "sslcrl")
#: Our sessions have names of their own, by which we find them.
NAMED_BY_US: Final = ("application_name", "fallback_application_name")

OTHERS: Final = frozenset({"host", "hostaddr", "port", "service", "servicefile"})
KNOWN: Final = DRIVER | OTHERS | set(ONLY) | set(CHOICES) | set(NUMBERS) | set(NAMED_BY_US)

HINT: Final = (
    "It looks like postgresql://user:password@host:5432/database; give it with --dsn or IU_LISTEN_DSN."
    " Write characters such as @ : / ? # % in the user or the password as %40 and so on."
)


@dataclass(frozen=True, slots=True)
class Address:
    """A database, and how to reach it. Its ``repr`` shows no secret.

    Attributes:
        hosts: Host and port of each server, in the order in which they are tried; empty: the driver's defaults.
        driver: What the driver is told: user, password, database, TLS; without a host the port, too.
        settings: What the server is told.
        reach: How the network is treated: connect_timeout, keepalives and so on.
    """

    hosts: tuple[tuple[str, int], ...]
    driver: Mapping[str, str] = field(repr=False)
    settings: Mapping[str, str] = field(repr=False)
    reach: Mapping[str, str]

    def uri(self, host: tuple[str, int] | None) -> str:
        """A URI for the driver and one server, in a form that has one meaning."""
        place = {"host": host[0], "port": str(host[1])} if host else {}
        return _written({**self.driver, **place, **self.settings})

    def without_secrets(self, database: str) -> str:
        """A URI for the programs of PostgreSQL: all servers, this database, and no secret."""
        place = {"dbname": database}
        if self.hosts:
            place["host"] = ",".join(host for host, _ in self.hosts)
            place["port"] = ",".join(str(port) for _, port in self.hosts)
        kept = {name: v for name, v in self.driver.items() if name not in SECRETS}
        return _written({**kept, **self.reach, **place})

    def scrub(self, text: str) -> str:
        """A text without our secrets, in the forms in which they may stand in it."""
        for name in SECRETS:
            secret = self.driver.get(name)
            if secret:
                for form in {secret, quote(secret), quote(secret, safe=""), repr(secret)[1:-1]}:
                    text = text.replace(form, "***")
        return text


def _written(parameters: Mapping[str, str]) -> str:
    return "postgresql://?" + "&".join(f"{name}={quote(v, safe='')}" for name, v in parameters.items())


def parse(dsn: str | None, environ: Mapping[str, str]) -> Address:
    """Understand a connection string.

    Args:
        dsn: The string; None or empty: the environment alone.
        environ: Where the PG* variables are.

    Raises:
        ConfigurationError: naming the parameter or the part, and never a value.
    """
    said = _said(dsn) if dsn else {}
    inherited = {name: environ[variable] for name, variable in VARIABLES.items() if environ.get(variable)}
    service = said.get("service") or inherited.get("service")
    served = _service(service, said.get("servicefile"), environ) if service else {}
    # Each says all about the server: an address that another one names is that of another server.
    if {"host", "hostaddr"} & said.keys():
        served = {name: v for name, v in served.items() if name not in ("host", "hostaddr")}
    if {"host", "hostaddr"} & (said.keys() | served.keys()):
        inherited = {name: v for name, v in inherited.items() if name not in ("host", "hostaddr")}
    options = {name: v for name, v in {**inherited, **served, **said}.items() if v}
    _check(options)
    ours, hosts = {*CHOICES, *NUMBERS}, _hosts(options)
    return Address(
        hosts=hosts,
        driver={name: v for name, v in options.items() if name in DRIVER or (name == "port" and not hosts)},
        settings={name: v for name, v in options.items() if name not in KNOWN},
        reach={name: v for name, v in options.items() if name in ours and name not in DRIVER},
    )


def _wrong(what: str) -> ConfigurationError:
    return ConfigurationError(f"the connection string does not parse: {what}", HINT)


# -- the two forms of a string -----------------------------------------------------------------------------------


def _said(dsn: str) -> dict[str, str]:
    """Parameters of a string by libpq's names."""
    scheme, mark, rest = dsn.partition("://")
    if mark and re.fullmatch(r"[A-Za-z][\w+.-]*", scheme):
        if scheme not in ("postgresql", "postgres"):
            raise _wrong("it does not begin with postgresql://")
        return _uri(rest)
    return _pairs(dsn)


def _uri(rest: str) -> dict[str, str]:
    found: dict[str, str] = {}
    authority, path, query = re.fullmatch(r"([^/?#]*)([^?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    # A character of a password that ends the part which it stands in moves what follows into the next part.
    if "#" in query:
        raise _wrong("it has a #, which is %23 in a password")
    if "@" in path or ("@" in query and not path and "@" not in authority):
        raise _wrong("user and password have a character that ends them: / is %2F, ? is %3F, @ is %40")
    if authority.count("@") > 1:
        raise _wrong("user and password have an @, which is %40 there")
    login, at, servers = authority.rpartition("@")
    if at:
        user, _, password = login.partition(":")
        found |= {"user": unquote(user), "password": unquote(password)}
    if servers:
        pairs = [_server(one) for one in servers.split(",")]
        found["host"] = ",".join(host for host, _ in pairs)
        if any(port for _, port in pairs):
            found["port"] = ",".join(port for _, port in pairs)
    if len(path) > 1:
        found["dbname"] = unquote(path[1:])
    for pair in query[1:].split("&") if len(query) > 1 else []:
        name, equals, raw = pair.partition("=")
        if not equals:
            raise _wrong("a parameter behind the ? has no =")
        name = {"database": "dbname", "ssl": "sslmode"}.get(unquote(name), unquote(name))
        found[_name(name)] = "require" if (name, raw) == ("sslmode", "true") else unquote(raw)
    return {name: v for name, v in found.items() if v}


def _server(text: str) -> tuple[str, str]:
    """Host and port of one server, which may be an IPv6 address in brackets."""
    found = re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?|([^:\[\]]*)(?::(.*))?", text)
    if not found:
        raise _wrong("a host is neither a name nor an address; a [ or ] in a password is %5B or %5D")
    return unquote(found[1] or found[3] or ""), found[2] or found[4] or ""


def _pairs(dsn: str) -> dict[str, str]:
    found: dict[str, str] = {}
    pattern = re.compile(r"\s*(\w+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|((?:[^\s'\\]|\\.)*))(?=\s|$)", re.DOTALL)
    at = 0
    while at < len(dsn.rstrip()):
        pair = pattern.match(dsn, at)
        if not pair:
            raise _wrong("it is neither a URI nor pairs of name=value")
        raw = pair[2] if pair[2] is not None else pair[3]
        found[_name({"database": "dbname"}.get(pair[1], pair[1]))] = re.sub(r"\\(.)", r"\1", raw)
        at = pair.end()
    return found


def _name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", name):
        raise _wrong("the name of a parameter is none")
    return name


# -- what the parameters say -------------------------------------------------------------------------------------


def _check(options: Mapping[str, str]) -> None:
    for name, v in options.items():
        allowed = CHOICES.get(name)
        if allowed and v not in allowed:
            raise _wrong(f"{name} is one of {', '.join(allowed)}")
        if name in ONLY and v.lower() not in ONLY[name]:
            can = f": only {', '.join(ONLY[name])} can be kept" if ONLY[name] else ""
            raise ConfigurationError(
                f"the connection parameter {name} cannot be obeyed{can}",
                f"Take {name} out of the connection string, or {VARIABLES.get(name, name)} out of the environment.",
            )
        if name in NUMBERS and not re.fullmatch(r"-?[0-9]{1,9}", v):
            raise _wrong(f"{name} is a whole number")
        if name in FILES and not Path(v).expanduser().is_file():
            raise ConfigurationError(f"the file that {name} names is not there, or cannot be read", "Name another one.")


def _hosts(options: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    names, numbers = options.get("host", ""), options.get("hostaddr", "")
    if numbers and names and options.get("sslmode") == "verify-full":
        raise ConfigurationError("hostaddr cannot be obeyed with sslmode=verify-full", "Name the server by host alone.")
    hosts = (numbers or names).split(",") if numbers or names else []
    ports = options["port"].split(",") if "port" in options else [""]
    if len(ports) == 1:
        ports *= max(len(hosts), 1)
    if hosts and len(ports) != len(hosts):
        raise _wrong(f"there are {len(ports)} ports for {len(hosts)} hosts")
    for host in hosts:
        if not re.fullmatch(r"[/@].*|[\w.:%-]+", host):
            raise _wrong("a host has a character that no host has")
    for port in ports:
        if port and not (re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536):
            raise _wrong("a port is no number from 1 to 65535")
    return tuple((host, int(port or 5432)) for host, port in zip(hosts, ports, strict=False))


def _service(service: str, named: str | None, environ: Mapping[str, str]) -> dict[str, str]:
    """What a service file says. A service that is not there is an error: the defaults would be another database."""
    places: list[str | None] = [named or environ.get("PGSERVICEFILE")]
    if not places[0]:
        home, system = environ.get("HOME"), environ.get("PGSYSCONFDIR")
        places = [f"{home}/.pg_service.conf" if home else None, f"{system}/pg_service.conf" if system else None]
    for place in filter(None, places):
        found = configparser.RawConfigParser(comment_prefixes=("#",), delimiters=("=",), strict=False)
        found.optionxform = str  # type: ignore[assignment,method-assign]
        try:
            found.read_string(Path(place).read_text(encoding="utf-8"))
        except OSError:
            continue
        except (configparser.Error, UnicodeDecodeError):
            hint = "It has lines of [service] and name=value."
            raise ConfigurationError(f"the service file {place} does not parse", hint) from None
        if found.has_section(service):
            return {_name({"database": "dbname"}.get(name, name)): v for name, v in found.items(service)}
    tried = ", ".join(filter(None, places)) or "no file"
    raise ConfigurationError(
        "the service that the connection names is in no service file",
        f"Looked at: {tried}. PGSERVICEFILE names another.",
    )
