"""Where tools write: never over something that is there, unless they are told to."""

from collections.abc import Iterable
from pathlib import Path

from shared.errors import UserError


def new_file(path: str) -> Path:
    """`path`, its folder made; UserError where something lies there already (an empty file apart)."""
    file = Path(path)
    if file.is_dir():
        raise UserError(f"--output {path} is a folder: name a file.")
    if file.exists() and file.stat().st_size:
        raise UserError(f"--output {path} exists already: name another file, or delete it.")
    make_folder(file.parent)
    return file


def new_folder(path: str) -> Path:
    """`path`, made; UserError where it is a file or a folder with something in it."""
    folder = Path(path)
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--output {path} holds something already: name another folder, or empty it.")
    make_folder(folder)
    return folder


def folder_for(path: str, names: Iterable[str], overwrite: bool) -> Path:
    """`path`, made; UserError where it holds one of these files already, unless `overwrite`."""
    folder = Path(path)
    if not overwrite and (taken := next((name for name in names if (folder / name).exists()), None)):
        raise UserError(f"--output {path} holds {taken} already: name another folder, or add --overwrite.")
    make_folder(folder)
    return folder


def make_folder(folder: Path) -> None:
    """UserError where it cannot be made, or something else has its name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--output: folder {folder} cannot be made: {e.strerror}.") from e
