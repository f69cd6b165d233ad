"""A table with a column of labels, or a folder of one for each split."""

from __future__ import annotations

import os
import re
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from keras_distill.arguments import shown
from keras_distill.datasets.folders import SPLIT_NAMES, listed, split_of
from keras_distill.datasets.parts import Parts
from keras_distill.datasets.splits import check_class_names, draw_missing, sort_names
from keras_distill.datasets.table_files import is_table, read_table

if TYPE_CHECKING:
    import pandas as pd

#: With commas for thousands, a comma before the decimals, or as a percentage.
_LIKE_A_NUMBER = r"[-+]?(\d{1,3}(,\d{3})+(\.\d+)?|\d+([.,]\d+)?)\s*%?"


def tables_of(folder: str) -> dict[str, str]:
    """Returns the paths of a folder's tables by split; none, if it has no tables.

    Raises:
        ValueError: if they do not say which of them is train, or two are the same split.
    """
    tables = [e for e in listed(folder) if e.is_file() and is_table(e.name)]
    paths: dict[str, str] = {}
    for entry in tables:
        split = split_of(os.path.splitext(entry.name)[0])
        if split in paths:
            raise ValueError(
                f"{paths[split]!r} and {entry.path!r} both are the {split} split; keep one."
            )
        if split is not None:
            paths[split] = entry.path
    if tables and "train" not in paths:
        raise ValueError(
            f"{folder!r} has tables, as {tables[0].name!r}, but no train table; give one of "
            "them by its path, or name them train, validation and test."
        )
    return paths


def tables_parts(
    paths: dict[str, str], label: str | int | None, validation_fraction: float
) -> Parts:
    """Returns tables' rows: numbers as one vector, text as a string, both as a dict.

    Raises:
        ValueError: if a table is damaged, has no labels, one class only, or lacks values;
            naming it, the column and the row.
        ImportError: if what reads Parquet is not installed.
    """
    tables, names = {}, {}
    for split, path in paths.items():
        table, label_column = read_table(path, label)
        _check_complete(path, table)
        names[split] = _label_names(path, table[label_column])
        tables[split] = table.drop(columns=label_column)
    _check_same_columns(paths, tables)
    class_names = sort_names(set(names["train"]))
    check_class_names(f"the table {paths['train']!r}", class_names)
    labels = {
        split: _labels(paths[split], found, class_names, paths["train"])
        for split, found in names.items()
    }
    if len(class_names) < 2:
        raise ValueError(
            f"the table {paths['train']!r} has one class only, {class_names[0]!r}; give one "
            "with two at least."
        )
    inputs = _inputs(paths, tables)
    pairs = {split: (inputs[split], labels[split]) for split in tables}
    drawn = draw_missing(
        labels["train"], pairs, validation_fraction, class_names, repr(paths["train"])
    )
    of_train = pairs["train"]
    for split, chosen in drawn.items():
        pairs[split] = tf.nest.map_structure(lambda a, i=chosen: a[i], of_train)
    x = inputs["train"]
    shape: Any = (
        {name: column.shape[1:] for name, column in x.items()}
        if isinstance(x, dict)
        else x.shape[1:]
    )
    return Parts(
        {
            split: tf.data.Dataset.from_tensor_slices(pairs[split])
            for split in SPLIT_NAMES
        },
        class_names,
        shape,
        {split: len(pairs[split][1]) for split in SPLIT_NAMES},
        column_names=list(tables["train"].columns),
    )


def _check_complete(path: str, table: pd.DataFrame) -> None:
    missing = table.isna().to_numpy()
    if not missing.any():
        return
    row, column = np.argwhere(missing)[0]
    raise ValueError(
        f"the table {path!r} lacks the value of column {table.columns[column]!r} in row "
        f"{row + 1} ({missing.sum()} are missing in all; the first row after a header is 1): "
        "the cell is empty or says NA, null or the like. Fill it in, or drop the row or the "
        "column."
    )


def _label_names(path: str, column: pd.Series) -> list[str]:
    """Returns the name of each row's class.

    Raises:
        ValueError: if the labels are no classes.
    """
    where = f"the label column {column.name!r} of the table {path!r}"
    first = column.iloc[0]
    is_list = isinstance(first, (list, tuple, np.ndarray))
    if is_list or re.fullmatch(r"\s*\[[\d\s.,]*\]\s*", str(first)):
        raise ValueError(
            f"{where} has lists, as {shown(first)}; labels in one-hot form are not taken: "
            "give the class itself, as with argmax."
        )
    kind = _kind(where, column)
    if kind == "float":
        values = column.to_numpy("float64")
        is_whole = np.isfinite(values) & (values == np.floor(values))
        if (broken := values[~is_whole]).size:
            raise ValueError(
                f"{where} has numbers as {broken[0]:g}, which are values and no classes; "
                "give another column by label=, or make classes of them."
            )
        return [str(int(value)) for value in values]
    if kind == "int":
        is_bool = column.dtype.kind == "b" or str(column.dtype) == "boolean"
        return [str(bool(v) if is_bool else int(v)) for v in column]
    return [str(value) for value in column]


def _labels(
    path: str, names: list[str], class_names: list[str], train: str
) -> np.ndarray:
    """Returns the indices of classes, int64."""
    index = {name: i for i, name in enumerate(class_names)}
    for row, name in enumerate(names):
        if name not in index:
            raise ValueError(
                f"the table {path!r} has the class {name!r} in row {row + 1}, which {train!r} "
                "has not; add training examples of it, or drop the row."
            )
    return np.array([index[name] for name in names], "int64")


def _check_same_columns(paths: dict[str, str], tables: dict[str, pd.DataFrame]) -> None:
    """Refuses tables of other columns; brings those of another order into that of train."""
    wanted = list(tables["train"].columns)
    if not wanted:
        raise ValueError(
            f"the table {paths['train']!r} has no column but the labels; give inputs too."
        )
    for split, table in tables.items():
        if different := sorted(set(wanted) ^ set(table.columns)):
            raise ValueError(
                f"the tables {paths['train']!r} and {paths[split]!r} differ in the column "
                f"{different[0]!r}, which only one of them has; give both the same."
            )
        tables[split] = table[wanted]


def _inputs(
    paths: dict[str, str], tables: dict[str, pd.DataFrame]
) -> dict[str, np.ndarray | dict[str, np.ndarray]]:
    """Returns x by split: one array of numbers or of text, or a dict of both."""
    kinds: dict[str, str] = {}
    for name in tables["train"].columns:
        found = {
            split: _kind(f"column {name!r} of the table {paths[split]!r}", table[name])
            for split, table in tables.items()
        }
        for split, kind in found.items():
            if (kind == "text") != (found["train"] == "text"):
                raise ValueError(
                    f"column {name!r} holds numbers in one of the tables "
                    f"{paths['train']!r} and {paths[split]!r}, and text in the other; give "
                    "both the same."
                )
        if found["train"] == "text":
            _warn_of_numbers(paths["train"], tables["train"][name])
        is_float = "float" in found.values()
        kinds[name] = "float" if is_float else found["train"]
    return {split: _x(paths[split], table, kinds) for split, table in tables.items()}


def _warn_of_numbers(path: str, column: pd.Series) -> None:
    """Warns of a column of a text file that is text for how its numbers are written."""
    import pandas as pd

    if path.lower().endswith(".parquet"):  # which says what its columns are
        return
    is_number = pd.to_numeric(column, errors="coerce").notna()
    count = (is_number | column.str.fullmatch(_LIKE_A_NUMBER)).sum()
    if 2 * count > len(column):
        row = int(is_number.argmin())
        warnings.warn(
            f"column {column.name!r} of the table {path!r} is taken for text, since row "
            f"{row + 1} has {shown(column.iloc[row])}; {count} of its {len(column)} cells are "
            "numbers, or look like them. Write all of them as 1234.5 if it is to be numbers.",
            stacklevel=6,
        )


def _x(
    path: str, table: pd.DataFrame, kinds: dict[str, str]
) -> np.ndarray | dict[str, np.ndarray]:
    if "text" not in kinds.values():
        columns = [_float32(path, table[name]) for name in table.columns]
        return np.stack(columns, axis=1)
    x = {}
    for name, kind in kinds.items():
        if kind == "text":
            x[name] = table[name].astype(object).to_numpy()
        elif kind == "int":
            x[name] = table[name].to_numpy("int64")
        else:
            x[name] = _float32(path, table[name])
    return x if len(x) > 1 else next(iter(x.values()))


def _float32(path: str, column: pd.Series) -> np.ndarray:
    with np.errstate(over="ignore"):
        values = column.to_numpy("float64").astype("float32")
    if not (finite := np.isfinite(values)).all():
        row = int(np.argmin(finite))
        raise ValueError(
            f"the table {path!r} has {column.iloc[row]} in column {column.name!r}, row "
            f"{row + 1}, which is no finite number of float32; replace it."
        )
    return values


def _kind(where: str, column: pd.Series) -> str:
    """Returns "float", "int" (also for booleans) or "text".

    Raises:
        ValueError: if the column holds something else.
    """
    from pandas.api import types

    kind, example = types.infer_dtype(column, skipna=False), column.iloc[0]
    if isinstance(column.dtype, types.CategoricalDtype):
        kind = types.infer_dtype(column.astype(object), skipna=False)
    kinds = {"floating": "float", "mixed-integer-float": "float", "integer": "int",
             "boolean": "int", "string": "text"}  # fmt: skip
    if kind == "integer" and column.dtype.kind != "i":
        ends = (int(column.astype(object).max()), int(column.astype(object).min()))
        for value in ends:
            if not -(2**63) <= value < 2**63:
                kind, example = "whole numbers of more than 64 bits", value
    if kind not in kinds:
        raise ValueError(
            f"{where} holds {kind}, as {shown(example)}; make numbers or text of "
            "them, or leave the column out."
        )
    return kinds[kind]
