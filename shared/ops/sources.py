"""What the native ops are built from. setup.py runs this file on its own: it imports nothing of the package."""

import hashlib
from pathlib import Path

CSRC = Path(__file__).resolve().parent / "csrc"


def hash_sources() -> str:
    """sha256 over names and contents of csrc, in sorted order."""
    digest = hashlib.sha256()
    for path in sorted(CSRC.glob("*.*")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
