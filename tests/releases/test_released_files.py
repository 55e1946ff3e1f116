"""Released SQL files never change, and a change of SQL has a new schema version."""

from __future__ import annotations

import pytest

from iu_listen.model.version import SCHEMA, VERSION, compatibility
from releases.archive import REPOSITORY, Release, releases


def versioned(name: str) -> bool:
    """Whether a path is that of a forward file that is applied once."""
    return name.endswith(".up.sql") and name.startswith(("sql/worker/", "sql/runtime/", "sql/base/", "sql/neutral/"))


@pytest.mark.parametrize("release", releases(), ids=lambda release: release.version)
def test_released_sql_files_never_change(release: Release):
    """Each versioned file of a release has the same text today.

    Fails when: a released file is edited or removed instead of a further file that makes the change.
    """
    differing = [
        name
        for name, text in release.files("sql/").items()
        if versioned(name) and (not (REPOSITORY / name).exists() or (REPOSITORY / name).read_bytes() != text)
    ]
    assert differing == []


def test_a_change_of_sql_has_a_new_schema_version():
    """If a forward file differs from the last release, the schema version is newer, and new files name it as `since`.

    Fails when: two versions with different SQL have the same schema version, or an upgrade skips a version.
    """
    release = releases()[-1]
    before = {name: text for name, text in release.files("sql/").items() if name.endswith(".up.sql")}
    now = {str(p.relative_to(REPOSITORY)): p.read_bytes() for p in REPOSITORY.glob("sql/*/*.up.sql")}
    if now == before:
        assert release.schema == SCHEMA
        return
    assert release.schema < SCHEMA
    assert tuple(map(int, VERSION.split("."))) > release.number
    for name in now.keys() - before.keys():
        assert f"-- since: {SCHEMA}\n" in now[name].decode(), name


def test_each_version_works_with_the_schema_before_it():
    """The last release and this version work with each other's schema."""
    release = releases()[-1]
    assert compatibility(release.schema, SCHEMA).works
    assert compatibility(SCHEMA, release.schema).works
