"""The address of a database: parses connection strings, service files and PG* variables.

It accepts the forms of libpq: a URI, or ``name=value`` pairs. A value in the connection string takes precedence over
the service file, and the service file over the environment. Each parameter of libpq either has the meaning that it has
in libpq, or is refused by its name; a name that libpq does not know is a setting of the server. Error messages contain
no values, because any part of a connection string may be a password.
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

#: Parameters of libpq that have an environment variable, with its name.
PARAMETER_VARIABLES: Final = {
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

#: Parameters that the driver supports.
DRIVER_PARAMETERS: Final = frozenset({
    "user", "password", "passfile", "dbname", "options", "sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl",
    "sslpassword", "sslnegotiation", "ssl_min_protocol_version", "ssl_max_protocol_version", "krbsrvname", "gsslib",
})  # fmt: skip

#: Parameters whose values are secrets.
SECRET_PARAMETERS: Final = ("password", "sslpassword")

#: Parameters that are not supported, with the values that are accepted because they change nothing.
ACCEPTED_VALUES: Final[Mapping[str, tuple[str, ...]]] = {
    "channel_binding": ("disable", "prefer"), "gssencmode": ("disable", "prefer"), "gssdelegation": ("0",),
    "sslsni": ("1",), "sslcompression": ("0",), "sslcertmode": ("allow",), "requiressl": ("0",), "requirepeer": (),
    "require_auth": (), "client_encoding": ("utf8", "utf-8"), "min_protocol_version": ("3.0",),
    "max_protocol_version": ("3.0", "3.2", "latest"), "replication": ("0", "off", "false", "no"), "oauth_issuer": (),
    "oauth_client_id": (), "oauth_client_secret": (), "oauth_scope": (), "scram_client_key": (),
    "scram_server_key": (), "sslcrldir": (), "authtype": (), "tty": (), "sslkeylogfile": (),
}  # fmt: skip

#: Parameters with a fixed list of values.
PARAMETER_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    "load_balance_hosts": ("disable", "random"),
    "keepalives": ("0", "1"),
}
#: Parameters with a whole number as value.
NUMBER_PARAMETERS: Final = (
    "connect_timeout",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
)
#: Parameters that name a file, which must exist.
FILE_PARAMETERS: Final = ("sslcert", "sslkey", "sslrootcert", "sslcrl")
#: Parameters that are ignored: each session has a fixed application_name by which iu-listen finds it.
IGNORED_PARAMETERS: Final = ("application_name", "fallback_application_name")

#: Parameters that tell where the server is, or where to look it up.
SERVER_PARAMETERS: Final = frozenset({"host", "hostaddr", "port", "service", "servicefile"})
#: All parameters of libpq. Any other name in a connection string is a setting of the server.
KNOWN_PARAMETERS: Final = frozenset[str]().union(
    DRIVER_PARAMETERS, SERVER_PARAMETERS, ACCEPTED_VALUES, PARAMETER_CHOICES, NUMBER_PARAMETERS, IGNORED_PARAMETERS
)

CONNECTION_STRING_HINT: Final = (
    "Expected postgresql://user:password@host:5432/database, as --dsn or IU_LISTEN_DSN."
    " Write characters such as @ : / ? # % in the user or the password as %40 and so on."
)


@dataclass(frozen=True, slots=True)
class ConnectionAddress:
    """A database and its connection parameters. Its ``repr`` shows no secret.

    Attributes:
        hosts: Host and port of each server, in the order of the tries; empty: the defaults of the driver.
        driver: Parameters for the driver: user, password, database, TLS; without a host also the port.
        settings: Settings for the server.
        reach: Parameters of the network connection: connect_timeout, keepalives and so on.
    """

    hosts: tuple[tuple[str, int], ...]
    driver: Mapping[str, str] = field(repr=False)
    settings: Mapping[str, str] = field(repr=False)
    reach: Mapping[str, str]

    def uri(self, host: tuple[str, int] | None) -> str:
        """A URI for the driver and one server, in an unambiguous form.

        Args:
            host: Host and port of the server; None: the defaults of the driver.
        """
        place = {"host": host[0], "port": str(host[1])} if host else {}
        return written({**self.driver, **place, **self.settings})

    def without_secrets(self, database: str) -> str:
        """A URI for the programs of PostgreSQL, with all servers, this database, and no secret."""
        place = {"dbname": database}
        if self.hosts:
            place["host"] = ",".join(host for host, _ in self.hosts)
            place["port"] = ",".join(str(port) for _, port in self.hosts)
        kept = {name: v for name, v in self.driver.items() if name not in SECRET_PARAMETERS}
        return written({**kept, **self.reach, **place})

    def scrub(self, text: str) -> str:
        """The text with each secret of this address masked, in plain, URL-encoded and Python-escaped form."""
        for name in SECRET_PARAMETERS:
            secret = self.driver.get(name)
            if secret:
                for form in {secret, quote(secret), quote(secret, safe=""), repr(secret)[1:-1]}:
                    text = text.replace(form, "***")
        return text


def written(parameters: Mapping[str, str]) -> str:
    """A URI with these parameters of libpq, in an unambiguous form."""
    return "postgresql://?" + "&".join(f"{name}={quote(v, safe='')}" for name, v in parameters.items())


def parse(dsn: str | None, environ: Mapping[str, str]) -> ConnectionAddress:
    """Parse a connection string.

    Args:
        dsn: The connection string; None or empty: use only the environment.
        environ: Environment with the PG* variables.

    Raises:
        ConfigurationError: the string is not valid. The message names the parameter or the part, and never a value.
    """
    said = _said(dsn) if dsn else {}
    inherited = {name: environ[variable] for name, variable in PARAMETER_VARIABLES.items() if environ.get(variable)}
    service = said.get("service") or inherited.get("service")
    served = _service(service, said.get("servicefile"), environ) if service else {}
    # A source that names a host or an address overrides both of a weaker source, which may mean another server.
    if {"host", "hostaddr"} & said.keys():
        served = {name: v for name, v in served.items() if name not in ("host", "hostaddr")}
    if {"host", "hostaddr"} & (said.keys() | served.keys()):
        inherited = {name: v for name, v in inherited.items() if name not in ("host", "hostaddr")}
    options = {name: v for name, v in {**inherited, **served, **said}.items() if v}
    _check(options)
    ours, hosts = {*PARAMETER_CHOICES, *NUMBER_PARAMETERS}, _hosts(options)
    return ConnectionAddress(
        hosts=hosts,
        driver={name: v for name, v in options.items() if name in DRIVER_PARAMETERS or (name == "port" and not hosts)},
        settings={name: v for name, v in options.items() if name not in KNOWN_PARAMETERS},
        reach={name: v for name, v in options.items() if name in ours and name not in DRIVER_PARAMETERS},
    )


def _wrong(what: str) -> ConfigurationError:
    return ConfigurationError(f"invalid connection string: {what}", CONNECTION_STRING_HINT)


# -- the two forms of a connection string ------------------------------------------------------------------------


def _said(dsn: str) -> dict[str, str]:
    """Parameters of a connection string, by the names of libpq."""
    scheme, mark, rest = dsn.partition("://")
    if mark and re.fullmatch(r"[A-Za-z][\w+.-]*", scheme):
        if scheme not in ("postgresql", "postgres"):
            raise _wrong("it does not begin with postgresql://")
        return _uri(rest)
    return _pairs(dsn)


def _uri(rest: str) -> dict[str, str]:
    found: dict[str, str] = {}
    authority, path, query = re.fullmatch(r"([^/?#]*)([^?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    # An unescaped / or ? or # in a password ends the authority part, so the rest of it appears in a later part.
    if "#" in query:
        raise _wrong("it contains a #, which must be written %23 in a password")
    if "@" in path or ("@" in query and not path and "@" not in authority):
        raise _wrong("the user or the password contains an unescaped character; write / as %2F, ? as %3F, @ as %40")
    if authority.count("@") > 1:
        raise _wrong("the user or the password contains an @, which must be written %40")
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
            raise _wrong("a parameter after the ? has no =")
        name = {"database": "dbname", "ssl": "sslmode"}.get(unquote(name), unquote(name))
        found[_name(name)] = "require" if (name, raw) == ("sslmode", "true") else unquote(raw)
    return {name: v for name, v in found.items() if v}


def _server(text: str) -> tuple[str, str]:
    """Host and port of one server. The host may be an IPv6 address in brackets; the port may be empty."""
    found = re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?|([^:\[\]]*)(?::(.*))?", text)
    if not found:
        raise _wrong("a host is neither a name nor an IP address; write [ and ] in a password as %5B and %5D")
    return unquote(found[1] or found[3] or ""), found[2] or found[4] or ""


def _pairs(dsn: str) -> dict[str, str]:
    found: dict[str, str] = {}
    pattern = re.compile(r"\s*(\w+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|((?:[^\s'\\]|\\.)*))(?=\s|$)", re.DOTALL)
    at = 0
    while at < len(dsn.rstrip()):
        pair = pattern.match(dsn, at)
        if not pair:
            raise _wrong("it is neither a URI nor a list of name=value pairs")
        raw = pair[2] if pair[2] is not None else pair[3]
        found[_name({"database": "dbname"}.get(pair[1], pair[1]))] = re.sub(r"\\(.)", r"\1", raw)
        at = pair.end()
    return found


def _name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", name):
        raise _wrong("the name of a parameter contains an invalid character")
    return name


# -- values of the parameters ------------------------------------------------------------------------------------


def _check(options: Mapping[str, str]) -> None:
    for name, v in options.items():
        allowed = PARAMETER_CHOICES.get(name)
        if allowed and v not in allowed:
            raise _wrong(f"{name} must be one of {', '.join(allowed)}")
        if name in ACCEPTED_VALUES and v.lower() not in ACCEPTED_VALUES[name]:
            raise ConfigurationError(*_unsupported(name))
        if name in NUMBER_PARAMETERS and not re.fullmatch(r"-?[0-9]{1,9}", v):
            raise _wrong(f"{name} must be a whole number")
        if name in FILE_PARAMETERS and not Path(v).expanduser().is_file():
            raise ConfigurationError(
                f"the file of the parameter {name} does not exist, or cannot be read", "Check the path."
            )


def _unsupported(name: str) -> tuple[str, str]:
    """Message and hint for a parameter that has a value that is not supported."""
    accepted = f"; only {', '.join(ACCEPTED_VALUES[name])} is accepted" if ACCEPTED_VALUES[name] else ""
    variable = PARAMETER_VARIABLES.get(name, name)
    return (
        f"the connection parameter {name} is not supported{accepted}",
        f"Remove {name} from the connection string, and {variable} from the environment.",
    )


def _hosts(options: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    names, numbers = options.get("host", ""), options.get("hostaddr", "")
    if numbers and names and options.get("sslmode") == "verify-full":
        raise ConfigurationError(
            "hostaddr is not supported with sslmode=verify-full", "Use only host, without hostaddr."
        )
    hosts = (numbers or names).split(",") if numbers or names else []
    ports = options["port"].split(",") if "port" in options else [""]
    if len(ports) == 1:
        ports *= max(len(hosts), 1)
    if hosts and len(ports) != len(hosts):
        raise _wrong(f"there are {len(ports)} ports for {len(hosts)} hosts")
    for host in hosts:
        if not re.fullmatch(r"[/@].*|[\w.:%-]+", host):
            raise _wrong("a host contains an invalid character")
    for port in ports:
        if port and not (re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536):
            raise _wrong("a port must be a number from 1 to 65535")
    return tuple((host, int(port or 5432)) for host, port in zip(hosts, ports, strict=False))


def _service(service: str, named: str | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Parameters of a service in a service file.

    Raises:
        ConfigurationError: the service was not found, because the defaults would name another database; or a file does
            not parse.
    """
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
            hint = "Expected: sections [service] with lines name=value."
            raise ConfigurationError(f"invalid service file {place}", hint) from None
        if found.has_section(service):
            return {_name({"database": "dbname"}.get(name, name)): v for name, v in found.items(service)}
    tried = ", ".join(filter(None, places)) or "no file"
    raise ConfigurationError(
        "no service file contains the service of the connection string",
        f"Files that were read: {tried}. Set PGSERVICEFILE to use another file.",
    )
