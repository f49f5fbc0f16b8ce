"""Files written whole or not at all: whoever reads one sees the old content or the new."""

import errno
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import UserError

STDOUT = Path("-")  # in the place of a file for JSON


def check_outputs(outputs: Mapping[str, Path | None], inputs: Iterable[Path] = ()) -> None:
    """Refuse files to write, by their options, before any work is done for them.

    Raises:
        UserError: a folder, a file in a folder that is not there, one file for two options, or a file of `inputs`.
    """
    read = {path.resolve() for path in inputs}
    taken: dict[Path, str] = {}
    for option, path in outputs.items():
        if path is None or path == STDOUT:
            continue
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise UserError(f"{path} cannot be written: {'it is' if path.is_dir() else 'its folder is not'} a folder.")
        if path.resolve() in read:
            raise UserError(f"{option} {path} would be written over what is read; give another name.")
        if (path.is_file() or not path.exists()) and (other := taken.setdefault(path.resolve(), option)) != option:
            raise UserError(f"{other} and {option} are one file, {path}; give each a name of its own.")


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one step. OSError leaves the one that was there. Links and devices are written through."""
    if path.is_symlink() or (
        path.exists() and not path.is_file()
    ):  # replacing /dev/stdout would take it from everybody
        path.write_bytes(content)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON in one step, or to standard output where the path is `STDOUT`; numbers that are not finite become
    null.

    What the output's encoding lacks, and in names of files what is no UTF-8, is written as JSON escapes it (\\uXXXX).
    """
    if path == STDOUT and sys.stdout is None:
        raise OSError(errno.EBADF, "standard output is closed")
    foreign = path == STDOUT and (sys.stdout.encoding or "").lower() not in ("utf-8", "utf8")
    text = json.dumps(plain(content), indent=1, ensure_ascii=foreign, allow_nan=False) + "\n"
    if path == STDOUT:
        sys.stdout.write(text.encode("utf-8", "backslashreplace").decode())
        sys.stdout.flush()
    else:
        replace_file(path, text.encode("utf-8", "backslashreplace"))


def plain(value: Any) -> Any:
    """The same as JSON has it: dicts with text as keys, lists, plain numbers; None for those that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and value - value != 0 else value


def write_csv(path: Path, rows: pd.DataFrame) -> None:
    """Write a table as CSV in one step."""
    replace_file(path, rows.to_csv(index=False).encode("utf-8", "surrogatepass"))
