"""Errors of a data mapper that name the image."""

from collections.abc import Callable

from detectron2.data.detection_utils import SizeMismatchError
from shared.errors import UserError


class NamedErrors:
    """Wraps a mapper: an image that is missing, corrupt or of another size ends in a `UserError`.

    Anything else (a bug, say) passes as it is.
    """

    def __init__(self, mapper: Callable[[dict], dict | None]):
        self.mapper = mapper

    def __call__(self, record: dict) -> dict | None:
        try:
            return self.mapper(record)
        except FileNotFoundError as e:
            raise UserError(f"Image file {record['file_name']} does not exist.") from e
        except SizeMismatchError as e:
            raise UserError(
                f"Image file {record['file_name']} is not {record['width']} x {record['height']}, "
                f"as its annotation file says: {' '.join(str(e).split())}"
            ) from e
        except (OSError, SyntaxError) as e:  # Pillow's kinds for unreadable images
            raise UserError(f"Image file {record['file_name']} cannot be read: {e}.") from e
