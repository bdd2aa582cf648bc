"""What `checkpoint.dir` may name."""

import subprocess
import sys
from pathlib import Path

import pytest

from bigtrain.checkpoint.places import is_local, place
from bigtrain.errors import ConfigError


def test_a_folder_is_a_path() -> None:
    assert place("some/folder") == Path("some/folder")
    assert place("file:///some/folder") == Path("/some/folder")
    assert not is_local(place("memory://some/folder"))


def test_an_unknown_kind_of_url() -> None:
    with pytest.raises(ConfigError, match=r"^s4://bucket/run: .*s4"):
        place("s4://bucket/run")


@pytest.mark.parametrize("missing", ["upath", "s3fs"])
def test_a_missing_package_is_told_with_the_extra_that_has_it(missing: str) -> None:
    program = (
        f"import sys\nsys.modules[{missing!r}] = None\n"
        "from bigtrain.checkpoint import catalog\n"
        "from bigtrain.checkpoint.places import place\n"
        "from bigtrain.errors import ConfigError\n"
        "assert not {'torch', 'fsspec'} & set(sys.modules)\n"
        "try:\n    place('s3://bucket/run')\n"
        "except ConfigError as error:\n    print(error)\n"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.startswith("s3://bucket/run needs a package that is missing (")
    assert told.endswith("): pip install 'bigtrain[remote]'\n")
