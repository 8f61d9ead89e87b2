"""Where things lie."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARED_FILES = ROOT.parent / "shared"  # papers' data and golden numbers; may be absent
