"""The cache under many hands, and how long one waits between two attempts."""

import hashlib
import subprocess
import sys
from pathlib import Path

from bigtrain.data.cache import Cache
from bigtrain.data.remote import Retry

HAND = """
import hashlib, random, sys
from pathlib import Path
from bigtrain.data.cache import Cache
cache, choose = Cache(Path(sys.argv[1]), max_bytes=5000), random.Random(int(sys.argv[2]))
fetched = 0
for _ in range(400):
    content = bytes([choose.randrange(12)]) * 1000
    def fetch(file):
        global fetched
        fetched += 1
        file.write(content[:500])
        file.write(content[500:])
    with cache.file(hashlib.sha256(content).hexdigest(), len(content), fetch) as path:
        assert path.read_bytes() == content
print(fetched)
"""


def test_many_processes_fetch_and_remove_at_once(tmp_path: Path) -> None:
    """Twelve files, room for five, three processes: what one holds is there, whole, and nothing is left half-done."""
    hands = [
        subprocess.Popen([sys.executable, "-c", HAND, str(tmp_path), str(seed)], stdout=subprocess.PIPE, text=True)
        for seed in range(3)
    ]
    fetched = [int(hand.communicate()[0] or -1) for hand in hands]
    assert [hand.returncode for hand in hands] == [0, 0, 0]
    assert all(5 <= count < 400 for count in fetched)
    assert list((tmp_path / "partial").iterdir()) == []
    kept = list((tmp_path / "files").iterdir())
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in kept)
    content = b"z" * 1000
    with Cache(tmp_path, 5000).file(hashlib.sha256(content).hexdigest(), 1000, lambda file: file.write(content)):
        assert sum(path.stat().st_size for path in (tmp_path / "files").iterdir()) <= 5000


def test_waits_double_to_a_bound_and_differ() -> None:
    retry = Retry(attempts=10, first_wait=0.5, longest_wait=60.0)
    for attempt, most in enumerate((0.5, 1, 2, 4, 8, 16, 32, 60, 60), start=1):
        waits = {retry.wait(attempt) for _ in range(50)}
        assert len(waits) > 1
        assert most / 2 <= min(waits) <= max(waits) <= most
