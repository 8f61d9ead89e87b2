"""`catalog://ImageNetPretrained/...` paths: the public ImageNet models that the zoo's configs start from."""

from detectron2.utils.file_io import PathHandler, PathManager

PREFIX = "catalog://ImageNetPretrained/"
BUCKET = "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/"
FILES = {
    "MSRA/R-50": "MSRA/R-50.pkl",
    "MSRA/R-101": "MSRA/R-101.pkl",
    "FAIR/R-50-GN": "47261647/R-50-GN.pkl",
    "FAIR/R-101-GN": "47592356/R-101-GN.pkl",
    "FAIR/X-101-32x8d": "20171220/X-101-32x8d.pkl",
}


class ModelCatalogHandler(PathHandler):
    def _get_supported_prefixes(self):
        return ["catalog://"]

    def _get_local_path(self, path, **kwargs):
        name = path.removeprefix(PREFIX)
        if name not in FILES:
            raise RuntimeError(f"{path} is not in the catalog. Use {PREFIX} and one of {sorted(FILES)}.")
        return PathManager.get_local_path(BUCKET + FILES[name], **kwargs)

    def _open(self, path, mode="r", **kwargs):
        return PathManager.open(self._get_local_path(path), mode, **kwargs)


PathManager.register_handler(ModelCatalogHandler())
