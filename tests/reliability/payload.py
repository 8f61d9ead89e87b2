"""Files that would run code when they are unpickled: each makes a marker file."""

import io
import pickle
import zipfile
from pathlib import Path

import torch


class Payload:
    """Unpickled, it makes `marker`."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def malicious_pth(marker: Path, legacy: bool = False) -> bytes:
    """What torch.save writes for {"model": {"weight": payload}}, as a zip file or in the format before it."""
    buffer = io.BytesIO()
    content = {"model": {"weight": Payload(marker)}, "iteration": 1}
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def malicious_pkl(marker: Path, protocol: int = 2) -> bytes:
    """A checkpoint in the format of Detectron2's model zoo."""
    return pickle.dumps({"model": {"weight": Payload(marker)}, "__author__": "zoo"}, protocol=protocol)


def truncated_zip(content: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


def zip_without_data() -> bytes:
    """A zip file that is no checkpoint."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    return buffer.getvalue()
