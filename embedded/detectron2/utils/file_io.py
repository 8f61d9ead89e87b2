"""The one PathManager of the engine, which also opens http and `detectron2://` paths."""

from iopath.common.file_io import HTTPURLHandler, OneDrivePathHandler, PathHandler
from iopath.common.file_io import PathManager as PathManagerBase

PathManager = PathManagerBase()


class Detectron2Handler(PathHandler):
    """`detectron2://x` is a file of Detectron2's public bucket, cached like any http file."""

    def _get_supported_prefixes(self):
        return ["detectron2://"]

    def _get_local_path(self, path, **kwargs):
        url = "https://dl.fbaipublicfiles.com/detectron2/" + path.removeprefix("detectron2://")
        return PathManager.get_local_path(url, **kwargs)

    def _open(self, path, mode="r", **kwargs):
        return PathManager.open(self._get_local_path(path), mode, **kwargs)


for handler in (HTTPURLHandler(), OneDrivePathHandler(), Detectron2Handler()):
    PathManager.register_handler(handler)
