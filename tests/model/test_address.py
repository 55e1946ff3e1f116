"""Connection strings: a string of libpq is understood or refused by name, and no error holds a part of a password."""

from __future__ import annotations

from inspect import getsource
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from iu_listen.model import address
from iu_listen.model.address import ACCEPTED_VALUES, PARAMETER_CHOICES, PARAMETER_VARIABLES, parse
from iu_listen.model.errors import ConfigurationError
from iu_listen.model.settings import Settings, mask

ANY = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0\n\r"), min_size=4, max_size=20)
#: The text of all messages that an error about a connection string may contain.
MESSAGES = getsource(address)
#: Characters that end a part of a URI, and others that may occur in a password.
ODD = st.text(alphabet="@:/?#[]%&= ,;+'\"\\aZ09", min_size=4, max_size=20)


@pytest.mark.parametrize(
    ("dsn", "hosts", "driver", "settings"),
    [
        ("postgresql://ada:x@db:5433/iu", [("db", 5433)], {"user": "ada", "password": "x", "dbname": "iu"}, {}),
        ("postgres://db/iu?sslmode=require", [("db", 5432)], {"dbname": "iu", "sslmode": "require"}, {}),
        ("postgresql://a:5433,[::1],c:1/iu", [("a", 5433), ("::1", 5432), ("c", 1)], {"dbname": "iu"}, {}),
        ("postgresql:///iu?host=/tmp/x&port=7", [("/tmp/x", 7)], {"dbname": "iu"}, {}),
        ("postgresql://%2Ftmp%2Fx/iu", [("/tmp/x", 5432)], {"dbname": "iu"}, {}),
        ("postgresql://u:p%40%3A%2F%3F%23%25@db/i%2Fu", [("db", 5432)],
         {"user": "u", "password": "p@:/?#%", "dbname": "i/u"}, {}),
        ("postgresql://db/iu?statement_timeout=7s&ssl=true", [("db", 5432)],
         {"dbname": "iu", "sslmode": "require"}, {"statement_timeout": "7s"}),
        ("postgresql://db/iu?user=me@azure&application_name=mine", [("db", 5432)],
         {"dbname": "iu", "user": "me@azure"}, {}),
        ("host=db port=5433 dbname = iu password='it''s'" .replace("''", "\\'"), [("db", 5433)],
         {"dbname": "iu", "password": "it's"}, {}),
        ("host=a,b port=1,2", [("a", 1), ("b", 2)], {}, {}),
        ("hostaddr=127.0.0.1 host=db", [("127.0.0.1", 5432)], {}, {}),
        ("", [], {}, {}),
        ("port=7", [], {"port": "7"}, {}),
    ],
)  # fmt: skip
def test_what_is_said(dsn, hosts, driver, settings):
    """Both forms of libpq give the same result, and a parameter that libpq does not have is a setting of the server."""
    found = parse(dsn, {})
    assert (list(found.hosts), dict(found.driver), dict(found.settings)) == (hosts, driver, settings)


@pytest.mark.parametrize(
    ("parameter", "says"),
    [(f"{name}=nonsense", name) for name in (*PARAMETER_CHOICES, *ACCEPTED_VALUES, "connect_timeout", "keepalives_idle", "sslrootcert")]
    + [("port=0", "port"), ("port=65536", "port"), ("port=1,2", "ports"), ("channel_binding=require", "channel_binding"),
       ("gssencmode=require", "gssencmode"), ("sslrootcert=/nowhere", "sslrootcert"), ("service=x", "service"),
       ("=1", "name of a parameter"), ("x", "no =")],
)  # fmt: skip
def test_what_cannot_be_obeyed(parameter, says):
    """A parameter that is not supported is refused by its name, both from the string and
    from its environment variable."""
    with pytest.raises(ConfigurationError, match=says) as refused:
        parse(f"postgresql://db/iu?{parameter}", {})
    assert "nonsense" not in refused.value.message + refused.value.hint
    name, _, value = parameter.partition("=")
    if name in PARAMETER_VARIABLES and name != "port":
        with pytest.raises(ConfigurationError, match=name):
            parse("postgresql://db/iu", {PARAMETER_VARIABLES[name]: value})


@pytest.mark.parametrize(
    "parameter",
    ["channel_binding=prefer", "connect_timeout=10", "keepalives=1", "keepalives_idle=30", "gssencmode=disable",
     "sslmode=prefer", "client_encoding=UTF8", "load_balance_hosts=random", "sslsni=1", "tcp_user_timeout=5000",
     "target_session_attrs=primary", "sslnegotiation=postgres", "sslcompression=0", "fallback_application_name=x"],
)  # fmt: skip
def test_what_is_obeyed(parameter):
    """Parameters that providers put into their strings are accepted, and none reaches a server as a setting."""
    assert not parse(f"postgresql://db/iu?{parameter}", {}).settings


def test_the_order_of_what_is_said(tmp_path):
    """The string precedes the service file, which precedes the environment; the server
    is taken from one source only."""
    services = tmp_path / "services"
    services.write_text("[shop]\nhost=filehost\nport=7\nuser=file\npassword=100%\ndbname=filedb\n")
    environ = {
        "PGSERVICEFILE": str(services),
        "PGHOSTADDR": "10.0.0.1",
        "PGUSER": "env",
        "PGPASSWORD": "env",
        "PGPORT": "9",
    }
    found = parse("postgresql://?service=shop&user=said", environ)
    assert found.hosts == (("filehost", 7),)
    assert found.driver == {"user": "said", "password": "100%", "dbname": "filedb"}
    assert parse("postgresql://u@db/x", environ).hosts == (("db", 9),)
    assert parse(None, environ).hosts == (("10.0.0.1", 9),)
    assert parse(None, environ | {"PGSERVICE": "shop"}).hosts == (("filehost", 7),)


def test_a_service_that_is_not_there(tmp_path):
    """A service that no file defines is an error and never the default database, also if there is no file."""
    services = tmp_path / "services"
    services.write_text("[shop]\nhost=db\n")
    for environ in (
        {"PGSERVICEFILE": str(services), "PGSERVICE": "ship"},
        {"PGSERVICEFILE": str(tmp_path / "none"), "PGSERVICE": "shop"},
        {"HOME": str(tmp_path), "PGSERVICE": "shop"},
        {"PGSERVICE": "shop"},
    ):
        with pytest.raises(ConfigurationError, match="no service file contains"):
            parse("", environ)
    services.write_text("rubbish\n")
    with pytest.raises(ConfigurationError, match="invalid service file"):
        parse("", {"PGSERVICEFILE": str(services), "PGSERVICE": "shop"})


@given(password=ANY | ODD)
@example(password="S3cretPart#rest")
@example(password="S3cretPart/rest")
@example(password="1234/rest")
@example(password="1234?a=b")
@example(password="S3cret/x?a=b")
@example(password="x/y?S3-cret=z")
@example(password="x host=S3!cret")
@example(password="p@ss")
@example(password="S3[cret")
def test_no_error_holds_a_part_of_a_password(password):
    """An error about a connection string contains no four consecutive characters of the
    password, however it was typed."""
    # A word of our own messages, or a part of the host, may be drawn as a password.
    parts = {part for i in range(len(password) - 3) if (part := password[i : i + 4]) not in MESSAGES + "db.example"}
    for dsn in (f"postgresql://app:{password}@db.example/x", f"host=db.example password={password}"):
        said = _refusal(dsn).replace("postgresql://", "")
        assert not [part for part in parts if part in said]


def _refusal(dsn: str) -> str:
    """The error message for a string, or the repr of the result if it is valid."""
    try:
        found = parse(dsn, {})
    except ConfigurationError as error:
        return error.message
    assert all("@" not in host for host, _ in found.hosts)
    return repr(found)


@given(password=ANY | ODD, user=ANY | ODD)
def test_an_encoded_password_is_itself(password, user):
    """A percent-encoded password is decoded to itself, and a URI that we write is read alike."""
    found = parse(f"postgresql://{quote(user, safe='')}:{quote(password, safe='')}@db/x", {})
    assert (found.driver["user"], found.driver["password"]) == (user, password)
    again = parse(found.uri(found.hosts[0]), {})
    assert (again.hosts, again.driver) == (found.hosts, found.driver)
    assert "***" in found.scrub(f"no {password}")
    assert "password" not in found.without_secrets("x")


@given(password=ANY | ODD)
def test_mask_hides_the_whole_password(password):
    """mask() hides a password with any characters completely, in a URI, in pairs, and in the repr of settings."""
    last = password[-4:]
    texts = [f"cannot connect: postgresql://app:{password}@db/x"]
    if "'" not in password:
        texts.append(f"password = '{password}'".replace("\\", ""))
    for text in texts:
        hidden = mask(text)
        assert "***" in hidden
        assert last not in hidden.replace("postgresql://", "").replace("password = ", "")
    shown = repr(Settings(dsn=f"postgresql://app:{password}@db/x"))
    assert "***" in shown


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("postgresql://u:p@ss@h/x", "postgresql://u:***@h/x"),
        ("password = x y", "password = *** y"),
        ("host=h password='a b' user=u", "host=h password=*** user=u"),
        ("postgresql://app:S3cret#rest", "postgresql://app:***"),
        ("see http://host:8080/x", "see http://host:8080/x"),
        ("nothing here", "nothing here"),
    ],
)
def test_mask(text, hidden):
    """mask() hides passwords with an @, with blanks around the =, in quotes, and cut off by a #."""
    assert mask(text) == hidden
