"""Trained models as programs that run without this repository; see `tools/export.py` and docs/exporting.md."""

from .formats import FORMATS, ExportFormat
from .program import ExportProgram
