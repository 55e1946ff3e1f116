"""The released versions of iu-listen, each as a compact archive of its src/ and sql/.

`make freeze` adds the present version; it belongs to the steps of a release (docs/how-to/release.md). An archive is
never changed: the tests of upgrades run these versions.
"""

from __future__ import annotations

import io
import lzma
import re
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from iu_listen.model.version import SCHEMA, VERSION, SchemaVersion

FOLDER = Path(__file__).parent
REPOSITORY = FOLDER.parents[1]


@dataclass(frozen=True, order=True)
class Release:
    """A released version.

    Attributes:
        number: Its version as numbers, as (0, 1, 0).
    """

    number: tuple[int, ...]

    @property
    def version(self) -> str:
        """Its version as text."""
        return ".".join(map(str, self.number))

    @property
    def path(self) -> Path:
        """Its archive."""
        return FOLDER / f"{self.version}.tar.xz"

    def files(self, folder: str = "") -> dict[str, bytes]:
        """Its files in a folder, by path."""
        with tarfile.open(self.path) as archive:
            found = [m for m in archive.getmembers() if m.isfile() and m.name.startswith(folder)]
            return {m.name: archive.extractfile(m).read() for m in found}  # type: ignore[union-attr]

    @property
    def schema(self) -> SchemaVersion:
        """The schema version of its SQL package."""
        text = self.files("src/iu_listen/model/version.py").popitem()[1].decode()
        found = re.search(r"^SCHEMA: Final = SchemaVersion\((\d+), (\d+)\)$", text, re.MULTILINE)
        assert found, self.path
        return SchemaVersion(int(found[1]), int(found[2]))

    def unpack(self, folder: Path) -> Path:
        """Extract its files into a folder, and return the folder. Its modules are in src/."""
        for name, text in self.files().items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text)
        return folder


def releases() -> list[Release]:
    """All releases, the oldest first."""
    return sorted(Release(tuple(map(int, p.name.removesuffix(".tar.xz").split(".")))) for p in FOLDER.glob("*.tar.xz"))


def freeze() -> Path:
    """Write the archive of the present version, from the files that git tracks, and return its path.

    Raises:
        SystemExit: The version is released already, or a tracked file is changed.
    """
    release = Release(tuple(map(int, VERSION.split("."))))
    if release.path.exists():
        sys.exit(f"version {VERSION} is released already: {release.path.relative_to(REPOSITORY)}")
    if _git("status", "--porcelain", "--untracked-files=no", "src", "sql"):
        sys.exit("src/ or sql/ has changes that are not committed")
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in _git("ls-files", "src", "sql").splitlines():
            member = tarfile.TarInfo(name)
            data = (REPOSITORY / name).read_bytes()
            member.size, member.mode = len(data), 0o644
            archive.addfile(member, io.BytesIO(data))
    release.path.write_bytes(lzma.compress(memory.getvalue(), preset=9 | lzma.PRESET_EXTREME))
    return release.path


def _git(*args: str) -> str:
    return subprocess.run(["git", "-C", REPOSITORY, *args], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    print(f"{freeze().relative_to(REPOSITORY)}: iu-listen {VERSION}, schema {SCHEMA}")
