"""Jobs on a real Slurm: what befalls them does not change what they compute (`lives.py` does it to them)."""

from concurrent.futures import Future

import pytest
from lives import LIVES, SEED
from strikes import Recovery

pytestmark = pytest.mark.slurm


@pytest.mark.parametrize("name", LIVES)
def test_life(lives: dict[str, Future[list[Recovery]]], name: str) -> None:
    """They began with the first test of all."""
    print(f"BIGTRAIN_TEST_SEED={SEED}")
    print(*lives[name].result(), sep="\n")
