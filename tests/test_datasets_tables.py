"""Tables as data: what x, labels and classes become, and what is refused."""

import pathlib
import sys

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill import datasets

RNG = np.random.default_rng(0)


def load(path, **options):
    return datasets.load(path, verbose=False, **options)


def numbers(rows=30, label=("a", "b", "c")):
    """A table of three columns of numbers, and labels in turn."""
    table = pd.DataFrame(
        {
            "width": np.arange(rows) * 0.5,
            "count": np.arange(rows),
            "is new": np.arange(rows) % 2 == 0,
        }
    )
    return table.assign(label=[label[i % len(label)] for i in range(rows)])


def write(table, path, **options):
    if str(path).endswith(".parquet"):
        table.to_parquet(path, **options)
    else:
        separator = "\t" if str(path).endswith(".tsv") else ","
        table.to_csv(path, sep=separator, **{"index": False, **options})
    return path


def whole(data):
    """Returns x and y of all splits together."""
    parts = [
        datasets.to_arrays(split) for split in (data.train, data.validation, data.test)
    ]
    return tf.nest.map_structure(lambda *arrays: np.concatenate(arrays), *parts)


@pytest.mark.parametrize("name", ["t.csv", "t.TSV".lower(), "T.CSV", "t.parquet"])
def test_numbers_come_as_one_vector_in_the_columns_order(tmp_path, name):
    data = load(write(numbers(), tmp_path / name))
    assert repr(data) == (
        f"Data({name!r}: 3 classes of (3,); 22 train, 2 validation, 6 test)"
    )
    assert data.column_names == ["width", "count", "is new"]
    assert data.class_names == ["a", "b", "c"]
    x, y = whole(data)
    assert (x.dtype, y.dtype) == (np.float32, np.int64)
    order = np.argsort(x[:, 1])
    assert (x[order] == numbers()[data.column_names].to_numpy("float32")).all()
    assert (y[order] == np.arange(30) % 3).all()
    assert datasets.fits_in_memory(data)
    assert load(tmp_path / name, seed=9).sizes == data.sizes


def test_one_column_of_text_stays_text(tmp_path):
    texts = [f'he said "{i}", é' for i in range(10)]
    table = pd.DataFrame({"label": [0, 1] * 5, "text": texts})
    data = load(write(table, tmp_path / "t.csv"))
    assert (data.input_shape, data.column_names) == ((), ["text"])
    assert data.train.element_spec[0] == tf.TensorSpec((None,), tf.string)
    x, y = whole(data)
    found = dict(zip((text.decode() for text in x), y.tolist(), strict=True))
    assert found == dict(zip(texts, [0, 1] * 5, strict=True))
    assert not datasets.fits_in_memory(data)  # its size is not fixed


def test_mixed_columns_come_as_a_dict_that_feature_space_takes(tmp_path):
    table = numbers().assign(city=["Bern", "Rom", "Köln"] * 10)
    data = load(write(table, tmp_path / "t.csv"), batch_size=8)
    assert data.input_shape == {"width": (), "count": (), "is new": (), "city": ()}
    assert repr(data).startswith("Data('t.csv': 3 classes of 4 columns; 22 train")
    dtypes = {
        name: spec.dtype.name for name, spec in data.train.element_spec[0].items()
    }
    assert dtypes == {
        "width": "float32", "count": "int64", "is new": "int64", "city": "string",
    }  # fmt: skip
    x, y = whole(data)
    rows = {c.decode() for c in x["city"][y == 0]}
    assert rows == {"Bern"}
    space = keras.utils.FeatureSpace(
        {
            "width": "float_normalized",
            "count": "float",
            "is new": "integer_categorical",
            "city": "string_categorical",
        }
    )
    space.adapt(data.train.map(lambda x, y: x))
    encoded = space(next(iter(data.test))[0])
    assert encoded.shape[0] == 6
    assert data.replace(name="other").input_shape == data.input_shape
    with pytest.raises(
        ValueError, match="must name the inputs that train yields, which"
    ):
        data.replace(input_shape={"width": ()})


def test_a_model_of_columns_learns_from_a_teacher(tmp_path):
    table = numbers(label=("x", "y")).assign(city=["Bern", "Rom"] * 15)
    data = load(write(table, tmp_path / "t.csv"), batch_size=8)

    def model(width):
        lookup = keras.layers.StringLookup(
            vocabulary=["Bern", "Rom"], output_mode="one_hot"
        )
        city = keras.Input((1,), dtype="string", name="city")
        wide = keras.Input((1,), name="width")
        joined = keras.layers.Concatenate()([lookup(city), wide])
        hidden = keras.layers.Dense(width, "relu")(joined)
        return keras.Model([city, wide], keras.layers.Dense(2)(hidden))

    distiller = kd.Distiller(model(4), model(8))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile("adam", loss, metrics=["accuracy"])
    history = distiller.fit(data.train, validation_data=data.validation, verbose=0)
    assert np.isfinite(history.history["val_accuracy"]).all()


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([1, 2, 10], ["1", "2", "10"]),
        ([True, False, True], ["False", "True"]),
        ([2.0, 1.0, 10.0], ["1", "2", "10"]),
        (["01", "9", "10"], ["01", "9", "10"]),
        (["b", "a", "10"], ["10", "a", "b"]),
        (["yes", "no", "é"], ["no", "yes", "é"]),
    ],
)
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_labels_of_every_kind(tmp_path, labels, names, ending):
    if ending == ".csv" and names[0] == "01":
        names = ["1", "9", "10"]  # a table of text does not tell "01" from 1
    data = load(write(numbers(label=labels), tmp_path / f"t{ending}"))
    assert data.class_names == names
    x, y = whole(data)
    said = [data.class_names[i] for i in y[np.argsort(x[:, 1])]]
    expected = [
        str(int(one)) if isinstance(one, float) else str(one) for one in labels * 10
    ]
    assert said[:3] == [
        one.lstrip("0") if ending == ".csv" else one for one in expected[:3]
    ]


def test_categories_and_nullable_numbers_of_parquet(tmp_path):
    table = numbers().astype(
        {"count": "Int64", "label": "category", "is new": "boolean"}
    )
    data = load(write(table, tmp_path / "t.parquet"))
    assert data.class_names == ["a", "b", "c"]
    assert datasets.to_arrays(data.test)[0].dtype == np.float32
    table["count"] = table["count"].astype(str).astype("category")
    data = load(write(table, tmp_path / "t.parquet"))
    assert data.train.element_spec[0]["count"].dtype == tf.string


def test_the_label_column_by_name_and_by_place(tmp_path):
    table = numbers().rename(columns={"label": "kind"})
    path = write(table, tmp_path / "t.csv")
    for label in ("kind", 3, -1, "3", "-1"):
        data = load(path, label=label)
        assert (data.class_names, len(data.column_names)) == (["a", "b", "c"], 3), label
    fetch = datasets.loader(path, label="kind")
    assert fetch().column_names == ["width", "count", "is new"]
    first = write(table[["kind", "count"]], tmp_path / "u.parquet")
    assert load(first, label=0).column_names == ["count"]


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_files_without_a_header(tmp_path, ending):
    path = write(numbers(), tmp_path / f"t{ending}", header=False)
    for label in (None, "label", -1, 3, "3"):
        data = load(path, label=label)
        assert sum(data.sizes.values()) == 30
        assert data.column_names == ["0", "1", "2"]
    table = numbers()[["label", "width", "count"]]
    first = write(table, tmp_path / f"u{ending}", header=False)
    assert load(first, label=0).class_names == ["a", "b", "c"]
    # Where the last column has no classes, nobody guesses.
    with pytest.raises(ValueError, match="no column 'label'.*no header, by its place"):
        load(first)
    # Classes that are numbers are no name of a column.
    binary = write(numbers(label=(0, 1)), tmp_path / f"v{ending}", header=False)
    for label in (None, "3", -1):
        assert sum(load(binary, label=label).sizes.values()) == 30


def test_a_folder_of_tables_with_dev_for_validation(tmp_path):
    root = tmp_path / "two words"
    root.mkdir()
    for name, rows in {"train": 8, "dev": 4, "TEST": 6}.items():
        texts = [f'"{name} {i} opens a quote' for i in range(rows)]
        table = pd.DataFrame({"text": texts, "label": [i % 2 for i in range(rows)]})
        lines = [f"{text}\t{label}" for text, label in table.to_numpy()]
        (root / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    (root / ".hidden.csv").write_text("x")
    (root / "README.md").write_text("x")
    data = load(root)
    assert data.name == "two words"
    assert data.sizes == {"train": 8, "validation": 4, "test": 6}
    x, y = datasets.to_arrays(data.validation)
    assert x.tolist() == [f'"dev {i} opens a quote'.encode() for i in range(4)]
    assert y.tolist() == [0, 1, 0, 1]
    (root / "dev.tsv").unlink()
    assert load(root).sizes == {"train": 7, "validation": 1, "test": 6}


def test_columns_of_other_splits_are_brought_into_order(tmp_path):
    write(numbers(), tmp_path / "train.csv")
    write(numbers(6)[["label", "count", "is new", "width"]], tmp_path / "test.csv")
    x, _ = datasets.to_arrays(load(tmp_path).test)
    assert x[:, 1].tolist() == list(range(6))


def spoiled(change, name="t.csv", **options):
    def spoil(folder):
        return write(change(numbers()), folder / name, **options)

    return spoil


def text(content, name="t.csv"):
    def spoil(folder):
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return spoil


def several(**tables):
    def spoil(folder):
        for name, table in tables.items():
            write(table, folder / f"{name}.csv")
        return folder

    return spoil


def missing(table):
    table = table.astype({"count": "float64"})
    table.loc[[4, 7], "count"] = np.nan
    return table


HOT = pd.get_dummies(numbers()["label"], prefix="label", dtype=int)
WRONG = [
    (
        spoiled(missing),
        "t.csv' lacks the value of column 'count' in row 5 .2 are missing",
    ),
    (
        spoiled(lambda t: t.assign(label=t["label"].where(t.index != 2))),
        "lacks the value of column 'label' in row 3",
    ),
    (spoiled(lambda t: t.drop(columns="label")), "no column 'label', only 'width', 'c"),
    (spoiled(lambda t: t[["label"]]), "has no column but the labels; give inputs too"),
    (
        spoiled(lambda t: t.assign(label="a")),
        "has one class only, 'a'; give one with two",
    ),
    (
        spoiled(lambda t: t.assign(label=t["width"])),
        "has numbers as 0.5, which are values",
    ),
    (
        spoiled(lambda t: t.assign(label=np.where(t["count"] % 2, np.inf, 1.0))),
        "has numbers as inf, which are values",
    ),
    (
        spoiled(lambda t: t[:3]),
        "the 3 training examples of '.*t.csv' are too few .*class 'a' has 1",
    ),
    (spoiled(lambda t: t.replace("a", "a\n")), "has the class 'a.n', which has a line"),
    (spoiled(lambda t: t.replace("b", " a")), "classes ' a' and 'a', which differ in"),
    (
        spoiled(lambda t: t.replace("a", ""), "t.parquet"),
        "has the class '', a label that says nothing; name it, or leave",
    ),
    (spoiled(lambda t: t[:0]), "has no rows; give one with examples"),
    (
        spoiled(lambda t: t.drop(columns="label").join(HOT)),
        "no column 'label'.*labels in one-hot form are not taken",
    ),
    (spoiled(lambda t: t.assign(label="[0, 1]")), "has lists, as .* one-hot form"),
    (
        spoiled(lambda t: t.assign(label=[[0, 1]] * 30), "t.parquet"),
        "has lists, as array.*; labels in one-hot form are not taken",
    ),
    (spoiled(lambda t: t, index=True), "no name for its column 0 .*to_csv.index=False"),
    (
        spoiled(lambda t: t.assign(width=np.inf)),
        "has inf in column 'width', row 1, which",
    ),
    (spoiled(lambda t: t.assign(width=1e300)), "has 1e.300 in column 'width', row 1"),
    (
        spoiled(lambda t: t.assign(day=pd.Timestamp("2026-01-01")), "t.parquet"),
        "column 'day' of the table '.*' holds datetime64, as Timestamp.*make numbers",
    ),
    (
        spoiled(lambda t: t.assign(raw=b"x"), "t.parquet"),
        "column 'raw' of the table '.*' holds bytes",
    ),
    (
        spoiled(lambda t: t.assign(big=2**63), "t.parquet"),
        "column 'big' .* holds whole numbers of more than 64 bits, as 9223372036854775808",
    ),
    (text(""), "t.csv' is an empty file; give one with examples"),
    (text("\n\n"), "t.csv' has no rows"),
    (text("a,label\n"), "t.csv' has no rows"),
    (text("a,a,label\n1,2,x\n1,2,y\n"), "has two columns of the name 'a'; rename one"),
    (text("a;label\n1;x\n2;y\n"), "columns are separated by ';': write them with comm"),
    (text("a;label\n1,5;x\n2,5;y\n"), "are separated by ';': write them with commas"),
    (text("a,label\n1,x\n2,y\n", "t.tsv"), "separated by ',': write them with tabs"),
    (text("# mine\na,label\n1,x\n2,y\n"), "is one cell only, '# mine'; give the names"),
    (
        spoiled(lambda t: t.rename(columns={"label": " Label"})),
        "no column 'label', .*; if ' Label' is meant, give label=' Label'",
    ),
    (
        text("a,label\n1,x\n2,y,3\n"),
        "cannot be read: Expected 2 fields in line 3, saw 3",
    ),
    (text("a,label\n1,x,3\n2,y,3\n"), "cannot be read: Length of header or names"),
    (text("a,b,label\n1,2,x\n1,y\n"), "lacks the value of column 'label' in row 2"),
    (text("a,label\n\xe9,x\n".encode("latin-1")), "is no text in UTF-8; write it so"),
    (text(b"a,label\n" + b"1,x\n" * 5000 + b"\xe9,x\n"), "is no text in UTF-8"),
    (text("a,label\n1,x\n", "t.parquet"), "t.parquet' cannot be read: .*; mend it"),
    (text("a,label\n1,x\n", "t.xlsx"), "t.xlsx' is no kind of data that is known"),
    (several(a=numbers()), "has tables, as 'a.csv', but no train table; give one of"),
    (several(train=numbers(), val=numbers(), dev=numbers()), "both are the validation"),
    (
        several(train=numbers(), test=numbers().drop(columns="count")),
        "differ in the column 'count', which only one of them has",
    ),
    (
        several(train=numbers(), test=numbers().drop(columns="label")),
        "test.csv' has no column 'label'",
    ),
    (
        several(train=numbers(), test=numbers().assign(label="z")),
        "test.csv' has the class 'z' in row 1, which '.*train.csv' has not",
    ),
    (
        several(train=numbers(), test=numbers().assign(count="many")),
        "column 'count' holds numbers in one of the tables .* and text in the other",
    ),
]


@pytest.mark.parametrize(("spoil", "sentence"), WRONG)
def test_what_is_wrong_with_a_table_is_said(tmp_path, spoil, sentence):
    with pytest.raises(ValueError, match=sentence) as found:
        load(spoil(tmp_path))
    assert str(found.value).endswith(".")


@pytest.mark.parametrize(("label", "shown"), [("kind", "'kind'"), (9, "9"), (-9, "-9")])
def test_a_label_that_is_no_column(tmp_path, label, shown):
    path = write(numbers(), tmp_path / "t.csv")
    with pytest.raises(
        ValueError, match=f"no column {shown}, only 'width', .* by label="
    ):
        load(path, label=label)


def test_a_cell_may_be_a_whole_document(tmp_path):
    table = pd.DataFrame(
        {"text": ["long, " * 50_000, "short"] * 5, "label": [0, 1] * 5}
    )
    x, y = whole(load(write(table, tmp_path / "t.csv")))
    assert {len(text) for text in x[y == 0]} == {300_000}


def test_bytes_before_the_header_that_excel_writes(tmp_path):
    path = write(
        numbers()[["label", "count"]], tmp_path / "t.csv", encoding="utf-8-sig"
    )
    assert load(path).column_names == ["count"]


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = write(numbers(), tmp_path / "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "fastparquet", None)
    with pytest.raises(ImportError, match=r"pip install keras-distill\[tables\]"):
        load(path)


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": (2, 2)},
        {"color_mode": "rgb"},
        {"seconds": 1.0},
        {"normalize": False},
    ],
)
def test_options_of_other_kinds_are_refused(tmp_path, options):
    path = write(numbers(), tmp_path / "t.csv")
    with pytest.raises(ValueError, match="is not for a table, which 't.csv' is"):
        load(pathlib.Path(path), **options)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda i: "?" if i == 3 else i, r"row 4 has '\?'; 29 of its 30 cells"),
        (
            lambda i: f"1,{i:03}",
            "row 1 has '1,000'; 30 of its 30 cells are numbers, or",
        ),
        (lambda i: f"{i},5", "row 1 has '0,5'; 30 of its 30"),
        (lambda i: f"{i}.5 %", "row 1 has '0.5 %'; 30 of its 30"),
    ],
)
def test_text_that_is_to_be_numbers_is_warned_of(tmp_path, change, said):
    path = write(numbers().assign(count=[*map(change, range(30))]), tmp_path / "t.csv")
    with pytest.warns(UserWarning, match=f"'count' of .*t.csv' is taken for text, since {said}"):  # fmt: skip
        data = load(path)
    assert data.train.element_spec[0]["count"].dtype == tf.string


def test_codes_with_letters_are_text_without_a_word(tmp_path, recwarn):
    codes = [["V45", "A1", "250", "2024-01-02", "1.2.3"][i % 5] for i in range(30)]
    data = load(write(numbers().assign(count=codes), tmp_path / "t.csv"))
    assert data.train.element_spec[0]["count"].dtype == tf.string
    assert not [one for one in recwarn if "taken for text" in str(one.message)]
