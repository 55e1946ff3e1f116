"""The state of the package in a database: its objects, its ledger and its schema version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from iu_listen.model.routing import DEFAULT_WORKER
from iu_listen.model.version import SCHEMA, Compatibility, SchemaVersion, compatibility
from iu_listen.postgres.session import Connection, translate_driver_errors
from iu_listen.postgres.sqlfiles import Migration, in_order, package_files, query

#: The file that a first apply applies last.
LAST_FILE: Final = "runtime/060_activate_inert"
#: The files whose objects are counted separately, as the seed does: 2 tables, 5 functions, 3 views, 1 key, 1 row.
SEED_FILES: Final = (
    "worker/008_route_worker_substrate",
    "worker/009_route_worker_functions",
    LAST_FILE,
)


@dataclass(frozen=True, slots=True)
class PackageObject:
    """One object of the package, with the file that creates it, and whether it exists in the database."""

    file: str
    kind: str
    name: str
    present: bool


@dataclass(frozen=True, slots=True)
class Package:
    """The state of the package in a database.

    Attributes:
        objects: All objects that the package creates, each with whether it exists.
        recorded: Checksum by file, from the ledger; empty without a ledger.
        version: The schema version of the database: the highest one in the ledger. None: nothing is recorded.
    """

    objects: tuple[PackageObject, ...]
    recorded: Mapping[str, str]
    version: SchemaVersion | None = None

    @property
    def compatibility(self) -> Compatibility:
        """How the schema version of the database relates to that of this iu-listen; SAME if nothing is recorded."""
        return compatibility(self.version or SCHEMA)

    @property
    def installed(self) -> bool:
        """Whether the package was applied to its end, by this or by another version of iu-listen."""
        return LAST_FILE in self.recorded

    @property
    def present(self) -> tuple[PackageObject, ...]:
        """The objects that exist."""
        return tuple(o for o in self.objects if o.present)

    @property
    def pending(self) -> tuple[Migration, ...]:
        """The files to apply, in order: those that are not recorded, and the changed repeatable files.

        Empty if the schema of the database is newer than that of this iu-listen.
        """
        if self.newer:
            return ()
        changed = self.changed
        return in_order(m for m in package_files() if m.name not in self.recorded or m in changed)

    @property
    def changed(self) -> tuple[Migration, ...]:
        """The repeatable files whose text differs from the recorded checksum. ``apply`` applies them again.

        Empty if the schema of the database is newer than that of this iu-listen.
        """
        if self.newer:
            return ()
        return tuple(m for m in package_files() if m.repeatable and self.recorded.get(m.name, m.checksum) != m.checksum)

    @property
    def to_roll_back(self) -> tuple[Migration, ...]:
        """The files that a rollback takes back, in order: those that are recorded, or of which an object exists."""
        files = {o.file for o in self.present} | set(self.recorded)
        return tuple(m for m in package_files() if m.name in files)

    @property
    def complete(self) -> bool:
        """Whether nothing is to be applied, and all objects exist that this version of iu-listen knows."""
        return not self.pending and len(self.present) == len(self.objects)

    @property
    def missing(self) -> tuple[Migration, ...]:
        """The files that belong to the schema version of the database, and are not recorded."""
        version = self.version or SCHEMA
        return tuple(m for m in package_files() if m.name not in self.recorded and m.since <= version)

    @property
    def usable(self) -> bool:
        """Whether this version of iu-listen works with the package in the database."""
        functions_differ = self.compatibility is Compatibility.SAME and self.changed
        return self.compatibility.works and not self.missing and not functions_differ and not self.drift()

    @property
    def newer(self) -> bool:
        """Whether the schema of the database is of a later version, so this iu-listen does not know all its files."""
        return self.compatibility in (Compatibility.NEWER, Compatibility.TOO_NEW)

    def drift(self) -> list[str]:
        """The differences between the database, the ledger and the files, as texts.

        The list is empty if the package is absent, complete, or applied up to one of its files.
        """
        found = []
        known = {m.name: m for m in package_files()}
        for name, checksum in self.recorded.items():
            if name not in known:
                # A later version of the package has files that this version does not know.
                if self.newer:
                    continue
                found.append(f"{name} is recorded, but this version of iu-listen does not know it")
            elif checksum != known[name].checksum and not known[name].repeatable:
                found.append(
                    f"{name} was edited after it was applied "
                    f"(checksum {checksum[:8]} recorded, {known[name].checksum[:8]} now)"
                )
        # A later version adds repeatable files and files in worker/ to a package whose runtime/ is applied already.
        names = [m.name for m in package_files() if m.name.startswith("worker/") and not m.repeatable]
        applied = [n for n in names if n in self.recorded]
        if applied != names[: len(applied)]:
            missing = next(n for n in names if n not in self.recorded)
            found.append(f"half applied: {applied[-1]} is recorded, {missing} before it is not")
        # An interrupted "transaction: none" file may leave objects behind. It removes them when it runs again. In an
        # applied package an object of a pending repeatable file may come from another repeatable file.
        tolerated = {
            m.name for m in package_files()
            if m.header("transaction") == "none" or (m.repeatable and applied)
        }  # fmt: skip
        changed = self.changed
        for o in self.objects:
            if o.file in self.recorded and not o.present and known[o.file] not in changed:
                found.append(f"half applied: {o.kind} {o.name} of {o.file} is missing")
            if o.file not in self.recorded and o.present and o.file not in tolerated:
                found.append(f"half applied: {o.kind} {o.name} exists, but {o.file} is not recorded")
        return found


async def package_state(connection: Connection) -> Package:
    """Read the state of the package. The base must exist."""
    with translate_driver_errors():
        rows = await connection.fetch(query("package_objects"))
        objects = [PackageObject(**row) for row in rows]
        if any(o.present for o in objects if o.name == "iu_route_worker_cursor"):
            registered = await connection.fetchval(query("cursor_exists"), DEFAULT_WORKER)
            objects = [PackageObject(o.file, o.kind, o.name, registered) if o.kind == "row" else o for o in objects]
        ledger = []
        if await connection.fetchval(query("ledger_exists")):
            ledger = await connection.fetch(query("ledger"))
    return Package(
        tuple(objects),
        {row["name"]: row["checksum"] for row in ledger},
        max((SchemaVersion.parse(row["schema_version"]) for row in ledger), default=None),
    )


async def missing_base_objects(connection: Connection) -> list[str]:
    """The objects of IU Core that the package needs and that are missing; empty: the package can be applied."""
    with translate_driver_errors():
        return [f"{row['kind']} {row['name']}" for row in await connection.fetch(query("missing_base_objects"))]


async def unsupported_base_types(connection: Connection) -> list[str]:
    """The columns of IU Core whose type the package does not support, as texts with the required type."""
    with translate_driver_errors():
        rows = await connection.fetch(query("unsupported_base_types"))
    return [f"{row['name']} has type {row['type']}, and must have {row['wanted']}" for row in rows]


def added(before: Package, after: Package) -> dict[str, dict[str, int]]:
    """The number of added objects by kind: those of SEED_FILES (``seed``) and all others (``apart``)."""
    there = {(o.kind, o.name) for o in before.present}
    counts: dict[str, dict[str, int]] = {"seed": {}, "apart": {}}
    for o in after.present:
        if (o.kind, o.name) not in there:
            of = counts["seed" if o.file in SEED_FILES else "apart"]
            of[o.kind] = of.get(o.kind, 0) + 1
    return counts
