"""Tables of text that people hand over: CSV with `,`, `;` or tab between cells, in UTF-8, with a header.

Cells stay text until somebody asks for numbers, and every row knows its line, so that a complaint can name it. An
empty row is no row. Names of columns that framebank looks for may be in any case of letters.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.errors import UserError
from pipeline.ids import readable

LARGEST = 1e18  # nothing that anybody measures is larger, and its square is still a float32


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise UserError(f"{readable(str(path))} could not be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        name = readable(str(path))
        raise UserError(f"{name} is not UTF-8 text (byte {error.start}). Save it as CSV in UTF-8.") from error


def read_table(path: Path, text: str | None = None, above: int = 0) -> pd.DataFrame:
    """A CSV file (`,`, `;` or tab; UTF-8) with a header -> stripped text cells, indexed by line number (from 1).

    Args:
        path: the file.
        text: what it holds, where it was read already.
        above: how many lines lie above the header.

    Raises:
        UserError: it cannot be read, is empty or ragged, or two columns have one name.
    """
    text = read_text(path) if text is None else text
    name = readable(path.name)
    lines = text.split("\n")
    while above < len(lines) and not lines[above].strip():
        above += 1
    if above >= len(lines):
        raise UserError(f"{readable(str(path))} is empty. Give it a header, and a row per entry.")
    try:
        cells = pd.read_csv(
            io.StringIO("\n".join(lines[above:])),
            sep=delimiter_of(lines[above]),
            header=None,
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,  # so that rows can be told by their line
            skipinitialspace=True,
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        detail = str(error).split("C error: ")[-1].strip()
        raise UserError(f"{name} is no table below its line {above + 1}: {detail}. Is every quote closed?") from error
    cells = cells.fillna("").apply(lambda column: column.str.strip())
    header = cells.iloc[0].tolist()
    while header and not header[-1]:
        header.pop()
    doubled = next((column for column in header if not column or header.count(column) > 1), None)
    if doubled is not None:
        what = f"two columns {doubled}" if doubled else "a column without a name"
        raise UserError(f"{name} has {what}. Give every column a name of its own.")
    if (cells.iloc[1:, len(header) :] != "").any(axis=None):
        raise UserError(f"{name} has more cells in a row than its header. Quote cells that hold a comma.")
    cells = cells.iloc[1:, : len(header)].set_axis(header, axis=1)
    cells.index += above + 1
    return cells[(cells != "").any(axis=1)]


def column_of(table: pd.DataFrame, names: Sequence[str]) -> str | None:
    """The column that has one of the lower-case names, in any case of letters."""
    return next((str(column) for name in names for column in table.columns if str(column).lower() == name), None)


def numbers(path: Path, cells: pd.Series, what: str) -> np.ndarray:
    """Text cells, indexed by line number -> float64.

    Raises:
        UserError: a cell is no finite number, with its line.
    """
    values = pd.to_numeric(cells, errors="coerce").to_numpy(np.float64)
    wrong = np.flatnonzero(~(np.abs(values) < LARGEST))
    if len(wrong):
        at, more = wrong[0], f" ({len(wrong)} such cells)" if len(wrong) > 1 else ""
        raise UserError(
            f"{readable(path.name)}, line {cells.index[at]}: {cells.name} is {cells.iloc[at]!r}, not {what}{more}. "
            "Mend it."
        )
    return values


def delimiter_of(line: str) -> str:
    """What separates the cells of a header: the commonest of `,`, `;` and tab."""
    return max(",;\t", key=line.count)


def cells_of(line: str) -> list[str]:
    """The stripped cells of one line, its own delimiter guessed from it alone."""
    return [cell.strip() for cell in next(csv.reader([line[:100_000]], delimiter=delimiter_of(line)), [])]
