"""Files of tables as DataFrames: what is read, whether it has a header, what it lacks."""

from __future__ import annotations

import csv
import itertools
import os
import re
import warnings
from typing import TYPE_CHECKING, Any

from keras_distill.arguments import shown

if TYPE_CHECKING:
    import pandas as pd

TABLES = (".csv", ".tsv", ".parquet")
_DEFAULT_LABEL = "label"


def is_table(path: str) -> bool:
    """Tells whether a path is a table's, by its ending."""
    return path.lower().endswith(TABLES)


def read_table(path: str, label: str | int | None) -> tuple[pd.DataFrame, str]:
    """Returns a table and the name of its label column.

    Of a text file whose first line is no header, the columns' names are their places.

    Args:
        path: of a .csv (commas), .tsv (tabs; quotes are text as any other), or .parquet.
        label: name or place of the label column; `None` for "label" or, where the first
            line is no header, the last.

    Raises:
        ValueError: if it is empty, damaged, or has no such column; naming it.
        ImportError: if what reads Parquet is not installed.
    """
    if os.path.getsize(path) == 0:
        raise ValueError(
            f"the table {path!r} is an empty file; give one with examples."
        )
    if path.lower().endswith(".parquet"):
        table = _parquet(path)
        names = [str(name) for name in table.columns]
        found = _number(label)
        name = _DEFAULT_LABEL if label is None else label
        place = names.index(name) if name in names else _in_range(found, names)
        _check_names(path, names)
    else:
        rows = _first_rows(path)
        _check_columns(path, rows)
        has_header, place = _layout(rows, label)
        names = rows[0] if has_header else [str(i) for i in range(len(rows[0]))]
        _check_names(path, names)
        table = _text(path, names, has_header)
    table.columns = names
    if not len(table):
        raise ValueError(f"the table {path!r} has no rows; give one with examples.")
    if place is None:
        raise ValueError(_no_label(path, names, label))
    return table, names[place]


def _number(label: str | int | None) -> int | None:
    """Returns the place that a label column is given by; `None` if it is by a name."""
    if isinstance(label, str):
        return int(label) if re.fullmatch(r"-?\d{1,6}", label) else None
    return label


def _in_range(place: int | None, names: list[str]) -> int | None:
    if place is None or not -len(names) <= place < len(names):
        return None
    return place % len(names)


def _layout(rows: list[list[str]], label: str | int | None) -> tuple[bool, int | None]:
    """Returns whether the first line names the columns, and the place of the label column.

    It names them if it names that one. It does not if the label is given by its place, or not
    at all, and the first label (in the last column, if it is not given) is one of those of
    the other lines. Where it is not given, classes must be fewer than half the lines.
    """
    first, others = rows[0], rows[1:]
    name = _DEFAULT_LABEL if label is None else label
    number = _number(label)
    if number is None and name in first:
        return True, first.index(str(name))
    place = _in_range(-1 if label is None else number, first)
    if place is not None:
        labels = [row[place] for row in others if len(row) == len(first)]
        is_few = 2 * len(set(labels)) <= max(4, len(labels))
        if first[place] in labels and (is_few or label is not None):
            return False, place
    if name in first:  # of the name "1", say
        return True, first.index(str(name))
    return True, None if label is None else place


def _check_columns(path: str, rows: list[list[str]]) -> None:
    """Refuses a text file of other separators, or whose first line is no row of it."""
    first = rows[0]
    mark = re.search(r"[,;\t|]", first[0])
    if len(first) > 1 or not (mark or any(len(row) > 1 for row in rows)):
        return
    wanted = "tabs" if _separator(path) == "\t" else "commas"
    raise ValueError(
        f"the first line of the table {path!r} is one cell only, {shown(first[0])}; "
        + (
            f"its columns are separated by {mark[0]!r}: write them with {wanted}."
            if mark
            else "give the names of all columns there, or the first row's cells."
        )
    )


def _no_label(path: str, names: list[str], label: str | int | None) -> str:
    known = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
    name = _DEFAULT_LABEL if label is None else label
    advice = "name the column of labels by label=, on the command line --label"
    alike = str(name).strip().lower()
    if likely := [one for one in names if one.strip().lower() == alike]:
        advice = f"if {likely[0]!r} is meant, give label={likely[0]!r}, on the command line --label"
    elif isinstance(label, int):
        advice = "give the place of one by label=; the first is 0, the last -1"
    elif label is None and sum(one.lower().startswith("label") for one in names) > 1:
        advice = (
            "labels in one-hot form are not taken: make one column of classes of them"
        )
    elif label is None and any(re.fullmatch(r"-?\d+(\.\d+)?", one) for one in names):
        advice += "; if its first line is no header, by its place, as 0 or -1"
    return f"the table {path!r} has no column {name!r}, only {known}; {advice}."


def _check_names(path: str, names: list[str]) -> None:
    for place, name in enumerate(names):
        if not name.strip() or name.startswith("__index_level_"):
            raise ValueError(
                f"the table {path!r} has no name for its column {place} (the first is 0): "
                "if it numbers the rows, leave it out, as with to_csv(index=False); else "
                "name it."
            )
        if name in names[:place]:
            raise ValueError(
                f"the table {path!r} has two columns of the name {name!r}; rename one."
            )


def _parquet(path: str) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_parquet(path)
    except ImportError as error:
        raise ImportError(
            f"to read {path!r} takes pyarrow: pip install keras-distill[tables]; or write "
            "the table as .csv."
        ) from error
    except (ValueError, OSError) as error:  # pyarrow's are such
        raise ValueError(_damaged(path, error)) from error


def _separator(path: str) -> str:
    return "\t" if path.lower().endswith(".tsv") else ","


def _quoting(path: str) -> int:
    # A quote may open a sentence and close none; read as a quote it would swallow rows.
    return csv.QUOTE_NONE if path.lower().endswith(".tsv") else csv.QUOTE_MINIMAL


def _first_rows(path: str, most: int = 1000) -> list[list[str]]:
    """Returns the cells of the first lines, which say whether there is a header."""
    limit = csv.field_size_limit(2**31 - 1)  # a cell may be a whole document
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            # csv's types are of its C code.
            options: Any = {"delimiter": _separator(path), "quoting": _quoting(path)}
            lines = csv.reader(file, **options)
            rows = list(itertools.islice(filter(None, lines), most))
    except UnicodeDecodeError as error:
        raise ValueError(_no_text(path)) from error
    except csv.Error as error:
        raise ValueError(_damaged(path, error)) from error
    finally:
        csv.field_size_limit(limit)
    if not rows:
        raise ValueError(f"the table {path!r} has no rows; give one with examples.")
    return rows


def _text(path: str, names: list[str], has_header: bool) -> pd.DataFrame:
    import pandas as pd

    try:
        with warnings.catch_warnings():
            # Of a first row that is longer than the header.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(
                path,
                sep=_separator(path),
                quoting=_quoting(path),
                names=names,
                header=0 if has_header else None,
                index_col=False,
                encoding="utf-8-sig",
                low_memory=False,
            )
    except UnicodeDecodeError as error:
        raise ValueError(_no_text(path)) from error
    except (ValueError, pd.errors.ParserWarning) as error:
        raise ValueError(_damaged(path, error)) from error


def _no_text(path: str) -> str:
    return (
        f"the table {path!r} is no text in UTF-8; write it so, as with "
        'to_csv(encoding="utf-8").'
    )


def _damaged(path: str, error: Exception) -> str:
    reason = str(error).removeprefix("Error tokenizing data. C error:")
    reason = re.sub(r"\s+", " ", reason).strip().rstrip(".")
    return f"the table {path!r} cannot be read: {reason}; mend it."
