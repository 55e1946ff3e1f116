"""The version of iu-listen; the pinned versions in constraints.txt, hashes.txt and the hooks of pre-commit."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import distribution

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conventions.files import ROOT
from iu_listen.model.version import VERSION

#: An entry of hashes.txt: a pinned version, then one hash in each line.
ENTRY = re.compile(r"(?P<pin>\S+==\S+)(?P<hashes>( \\\n    --hash=sha256:[0-9a-f]{64})+)\n")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _versions(pins: list[str]) -> dict[str, str]:
    return {canonicalize_name(name): version for name, _, version in (pin.partition("==") for pin in pins)}


PINS = _versions((ROOT / "constraints.txt").read_text().split())


def test_every_pin_has_its_hashes() -> None:
    """hashes.txt has the versions of constraints.txt, each with at least one hash, and nothing else: no URL, no index.

    Fails when: a pinned version was changed without `make hashes`.
    """
    text = (ROOT / "hashes.txt").read_text()
    entries = list(ENTRY.finditer(text))
    rest = ENTRY.sub("", text)
    assert [line for line in rest.splitlines() if not line.startswith("#")] == []
    assert "://" not in rest
    assert len(entries) == len(PINS)
    assert _versions([entry["pin"] for entry in entries]) == PINS


def test_every_requirement_is_pinned() -> None:
    """Each package that pyproject.toml names, also for tests and for a release, has a version in constraints.txt.

    Fails when: a requirement is added without its version, so that an installation takes the newest one.
    """
    project, groups = PROJECT["project"], PROJECT["dependency-groups"]
    lists = [PROJECT["build-system"]["requires"], project["dependencies"]]
    lists += [*project["optional-dependencies"].values(), *groups.values()]
    names = {canonicalize_name(Requirement(text).name) for texts in lists for text in texts}
    assert names - PINS.keys() == set()


def test_the_version_is_the_same_everywhere() -> None:
    """pyproject.toml, iu_listen and the newest section of CHANGELOG.md with a number have the same version.

    Fails when: one of the three is left out of a release.
    """
    newest = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert PROJECT["project"]["version"] == VERSION == newest[1]


def test_deployments_have_the_version() -> None:
    """The images, the wheel and the chart in deploy/ and on its page have the version of this repository.

    Fails when: a release leaves the version of one file as it was.
    """
    version = r"(\d[\w.]*\w)"
    pattern = re.compile(
        rf"iu-listen:{version}|iu_listen-{version}-py3|^(?:version|appVersion): \"?{version}", re.MULTILINE
    )
    files = [file for file in (ROOT / "deploy").rglob("*") if file.is_file()]
    found = {
        str(file.relative_to(ROOT)): {"".join(groups) for groups in pattern.findall(file.read_text())}
        for file in [*files, ROOT / "docs/how-to/deploy.md"]
    }
    named = {name: versions for name, versions in found.items() if versions}
    assert {"deploy/helm/iu-listen/Chart.yaml", "deploy/docker/Dockerfile", "docs/how-to/deploy.md"} <= named.keys()
    assert {name: versions for name, versions in named.items() if versions != {VERSION}} == {}


def test_the_hooks_use_the_pinned_ruff() -> None:
    """The hooks of pre-commit have the version of ruff that constraints.txt has.

    Fails when: one of the two versions was changed without the other, so that a hook formats code otherwise than CI.
    """
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"ruff-pre-commit\n +rev: v(\S+)", hooks) == [PINS["ruff"]]


def _needed(requirement: Requirement, environment: dict[str, str], found: set[str]) -> None:
    """Add the names of all dependencies of a requirement in an environment."""
    extras = requirement.extras or {""}
    own = requirement.name == PROJECT["project"]["name"]
    wanted = _of_project(extras) if own else distribution(requirement.name).requires or ()
    for text in wanted:
        more = Requirement(text)
        if more.marker is None or any(more.marker.evaluate({**environment, "extra": extra}) for extra in extras):
            known = f"{canonicalize_name(more.name)}{sorted(more.extras)}"
            if known not in found:
                found.add(known)
                _needed(more, environment, found)


def _of_project(extras: set[str]) -> list[str]:
    optional = PROJECT["project"]["optional-dependencies"]
    return [*PROJECT["project"]["dependencies"], *(text for extra in extras for text in optional[extra])]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("python", ["3.11", "3.13", "3.14"])
def test_what_the_image_installs_is_pinned(python: str, machine: str) -> None:
    """All dependencies of iu-listen with the extras of the image, on each Python and machine, are in constraints.txt.

    A dependency that is not pinned has no hash, so the image is not built. Fails when: a dependency of only one
    platform is left out.
    """
    (extras,) = re.findall(r"%s\[([\w,-]+)\] --hash", (ROOT / "deploy" / "docker" / "Dockerfile").read_text())
    environment = {
        "python_version": python, "python_full_version": f"{python}.99", "platform_machine": machine,
        "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }  # fmt: skip
    found: set[str] = set()
    _needed(Requirement(f"iu-listen[{extras}]"), environment, found)
    names = {name.partition("[")[0] for name in found}
    assert {"asyncpg", "h2", "protobuf", "redis"} <= names
    assert names - PINS.keys() == set()
