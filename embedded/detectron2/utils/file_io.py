"""The one PathManager of the engine, which also opens http and `detectron2://` paths."""

from iopath.common.file_io import HTTPURLHandler, OneDrivePathHandler, PathHandler
from iopath.common.file_io import PathManager as PathManagerBase

PathManager = PathManagerBase()


class Detectron2Handler(PathHandler):
    """`detectron2://x` is a file of Detectron2's public bucket, cached like any http file."""

    PREFIX = "detectron2://"
    BUCKET = "https://dl.fbaipublicfiles.com/detectron2/"

    def _get_supported_prefixes(self):
        return [self.PREFIX]

    def _get_local_path(self, path, force=False, **kwargs):
        url = self.BUCKET + path[len(self.PREFIX) :]
        return PathManager.get_local_path(url, force=force, **kwargs)

    def _open(self, path, mode="r", **kwargs):
        return PathManager.open(self._get_local_path(path), mode, **kwargs)


for handler in (HTTPURLHandler(), OneDrivePathHandler(), Detectron2Handler()):
    PathManager.register_handler(handler)
