"""Which texts are held out of training."""

import hashlib


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a document belongs to the held-out `fraction`: decided by a hash of its text, so that equal
    documents lie on one side whatever else is in the inputs."""
    if not fraction:
        return False
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest) < fraction * 2**64
