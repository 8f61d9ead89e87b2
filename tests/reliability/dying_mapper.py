"""A data mapper at which a process dies."""

import os
import signal

from detectron2.data import DatasetMapper
from detectron2.utils import comm
from shared.errors import UserError


class DyingMapper:
    def __init__(self, *, rank: int, how: str, after: int, note: str, **kwargs):
        """how: "exception", "user error" or "kill". after: images of the process before it dies. note: a file that is
        there from then on."""
        self.mapper, self.rank, self.how = DatasetMapper(**kwargs), rank, how
        self.left, self.note = after, note

    def __call__(self, record: dict) -> dict:
        self.left -= 1
        if self.left < 0 and comm.get_rank() == self.rank:
            open(self.note, "w").close()
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise UserError("A sentence.") if self.how == "user error" else RuntimeError("something\nbroke")
        return self.mapper(record)
