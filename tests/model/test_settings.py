"""Settings: one table, all mistakes in one error, no secret shown."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iu_listen.model.errors import ConfigurationError
from iu_listen.model.settings import OTHER_VARIABLES, PREFIX, Settings, mask, unknown_variables

CANARY = "hunter2-canary"


def test_defaults_are_within_their_own_ranges():
    """Every default is a value that would be accepted if it were typed."""
    defaults = Settings()
    typed = {f.name: getattr(defaults, f.name) for f in fields(Settings)}

    assert Settings.load({}, typed) == defaults


def test_what_is_typed_beats_the_environment():
    """The command line precedes the environment, and the environment precedes the default."""
    environ = {"IU_LISTEN_CATCH_UP": "7", "IU_LISTEN_LINGER": "0.1"}
    settings = Settings.load(environ, {"catch_up": 9.0})

    assert (settings.catch_up, settings.linger, settings.grace_period) == (9.0, 0.1, Settings().grace_period)


def test_an_empty_variable_is_not_set():
    """An empty environment variable counts as absent, because deployment files often contain empty ones."""
    assert Settings.load({"IU_LISTEN_CATCH_UP": "", "IU_LISTEN_DSN": ""}) == Settings()


def test_every_mistake_is_named():
    """Three wrong settings give one error that names all three."""
    environ = {"IU_LISTEN_BATCH_LIMIT": "0", "IU_LISTEN_LINGER": "soon", "IU_LISTEN_LOG_FORMAT": "xml"}
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(environ)

    assert "IU_LISTEN_BATCH_LIMIT must be from 1 to 100000, not 0" in caught.value.message
    assert "IU_LISTEN_LINGER must be a number, not 'soon'" in caught.value.message
    assert "IU_LISTEN_LOG_FORMAT must be one of auto, console, json, not 'xml'" in caught.value.message


@pytest.mark.parametrize("raw", ["nan", "inf", "-1"])
def test_numbers_that_are_none_are_refused(raw):
    """Not a number, infinity and negative durations are out of range."""
    with pytest.raises(ConfigurationError, match="IU_LISTEN_GRACE_PERIOD must be from"):
        Settings.load({"IU_LISTEN_GRACE_PERIOD": raw})


@pytest.mark.parametrize(("raw", "value"), [("on", True), ("TRUE", True), ("0", False), ("no", False)])
def test_booleans_are_written_as_people_write_them(raw, value):
    """true, on, yes and 1 are true; false, off, no and 0 are false, in any case."""
    assert Settings.load({"IU_LISTEN_LISTEN": raw}).listen is value


def test_a_boolean_that_is_no_boolean_is_refused():
    """Any other text is an error and does not count as false."""
    with pytest.raises(ConfigurationError, match="IU_LISTEN_LISTEN must be true or false, not 'maybe'"):
        Settings.load({"IU_LISTEN_LISTEN": "maybe"})


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://me:{CANARY}@host/db",
        f"postgresql://me:{CANARY}@one:5432,two:5432/db?target_session_attrs=primary",
        f"postgresql://host/db?user=me&password={CANARY}&sslmode=require",
        f"host=h password={CANARY} dbname=d",
        f"host=h password='{CANARY} with spaces' dbname=d",
    ],
)
def test_no_password_is_ever_shown(dsn):
    """Neither repr nor mask shows the password of a connection string, in any of its forms."""
    settings = Settings(dsn=dsn, listen_dsn=dsn)

    assert CANARY not in repr(settings)
    assert CANARY not in mask(f"cannot connect to {dsn}: refused")


@given(
    st.text(
        alphabet=st.characters(exclude_characters="@/ \n\t\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0", codec="ascii"),
        min_size=6,
    )
)
def test_mask_hides_whatever_stands_for_a_password(password):
    """For a password of any characters in a URL, mask() shows none of it."""
    assert f":{password}@" not in mask(f"postgresql://me:{password}@host/db")


def test_unknown_variables_have_a_hint():
    """A variable with the prefix that is no setting is named, with the most similar setting; its value is not shown.

    Variables of the embedded server and of the tests, and those that routes may use as secrets, are known.
    """
    environ = {PREFIX + name: CANARY for name in (*(f.name.upper() for f in fields(Settings)), *OTHER_VARIABLES)}
    assert unknown_variables(environ, Settings()) == {}
    environ |= {"IU_LISTEN_BATCHLIMIT": CANARY, "IU_LISTEN_ZZZ": CANARY, "IU_LISTEN_CRM": CANARY, "OTHER": CANARY}
    assert unknown_variables(environ, Settings(secrets="IU_SECRET_*, IU_LISTEN_CR*")) == {
        "IU_LISTEN_BATCHLIMIT": "Did you mean IU_LISTEN_BATCH_LIMIT?",
        "IU_LISTEN_ZZZ": "docs/reference/settings.md lists every setting.",
    }
