"""`catalog://` paths: the public ImageNet models that the zoo's configs start from."""

from detectron2.utils.file_io import PathHandler, PathManager


class ModelCatalog:
    """Names of pretrained models -> where they are."""

    BUCKET = "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/"
    FILES = {
        "MSRA/R-50": "MSRA/R-50.pkl",
        "MSRA/R-101": "MSRA/R-101.pkl",
        "FAIR/R-50-GN": "47261647/R-50-GN.pkl",
        "FAIR/R-101-GN": "47592356/R-101-GN.pkl",
        "FAIR/X-101-32x8d": "20171220/X-101-32x8d.pkl",
    }

    @classmethod
    def get(cls, name: str) -> str:
        """URL of "ImageNetPretrained/<one of FILES>"; RuntimeError for any other name."""
        group, _, model = name.partition("/")
        if group != "ImageNetPretrained" or model not in cls.FILES:
            raise RuntimeError(
                f"Model {name!r} is not in the catalog. Use catalog://ImageNetPretrained/ and one "
                f"of {sorted(cls.FILES)}."
            )
        return cls.BUCKET + cls.FILES[model]


class ModelCatalogHandler(PathHandler):
    PREFIX = "catalog://"

    def _get_supported_prefixes(self):
        return [self.PREFIX]

    def _get_local_path(self, path, **kwargs):
        return PathManager.get_local_path(ModelCatalog.get(path[len(self.PREFIX) :]), **kwargs)

    def _open(self, path, mode="r", **kwargs):
        return PathManager.open(self._get_local_path(path), mode, **kwargs)


PathManager.register_handler(ModelCatalogHandler())
