"""Wrong uses of plots."""

import functools
import types

import numpy as np
import pandas as pd

import keras_distill as kd
from tests.hostile import Row

NAN = float("nan")


def rows(function, good, wrong):
    """Returns rows of one function: good arguments, of which each row has one wrong."""
    return [
        Row(
            f"plots.{function}",
            functools.partial(_call, function, good, name, value),
            sentence,
        )
        for name, value, sentence in wrong
    ]


def _call(function, good, name, value):
    getattr(kd.plots, function)(**{**good, name: value})


NO_TEMPERATURES = "temperatures must be a list of temperatures, 1 at least, got"
CURVES = rows(
    "temperature_curves",
    {},
    [
        (
            "temperatures",
            (0, 1),
            r"temperatures\[0\] must be a finite number > 0, got 0",
        ),
        ("temperatures", [1, -2.0], r"temperatures\[1\] must be a finite .*got -2.0"),
        ("temperatures", [NAN], r"temperatures\[0\] must be a finite number .*got nan"),
        ("temperatures", [1e20], r"temperatures\[0\] must be from 1e-18 to 1e\+18"),
        ("temperatures", [True], "must be a finite number > 0, got True"),
        ("temperatures", ["4"], "must be a finite number > 0, got '4'"),
        ("temperatures", [[1.0], [2.0]], r"must be a finite number > 0, got \[1.0\]"),
        ("temperatures", (), NO_TEMPERATURES),
        ("temperatures", 4.0, NO_TEMPERATURES),
        ("temperatures", "14", NO_TEMPERATURES),
        ("temperatures", {1: 2}, NO_TEMPERATURES),
        ("temperatures", np.array(4.0), NO_TEMPERATURES),
        ("temperatures", None, NO_TEMPERATURES),
        ("classes", 1, "classes must be a whole number from 2 to 100000, got 1"),
        ("classes", 2.5, "classes must be a whole number from 2"),
        ("classes", 10**9, "classes must be a whole number from 2 to 100000"),
        ("low", NAN, "low must be a finite number, got nan"),
        ("low", 10, "high must be a finite number > low, 10, got 10.0"),
        ("high", "10", "high must be a finite number > low"),
        ("high", 10**400, "high must be a finite number > low"),
        ("seed", -1, "seed must be a whole number >= 0, got -1"),
        ("seed", None, "seed must be a whole number >= 0, got None"),
        ("log_scale", 1, "log_scale must be True or False, got 1"),
    ],
)
NO_LOGITS = r"logits must be finite logits `\(classes,\)` of one example, got"
NAMES = "class_names must be a list of str, got"
SOFT_TARGETS = rows(
    "soft_targets",
    {"logits": [2.0, 7.0, 10.0]},
    [
        ("logits", [], NO_LOGITS),
        ("logits", 3.0, NO_LOGITS),
        ("logits", [[2.0, 7.0]], rf"{NO_LOGITS} an array of shape \(1, 2\)"),
        ("logits", [[1.0], [2.0, 3.0]], NO_LOGITS),
        ("logits", ["2", "7"], NO_LOGITS),
        ("logits", [True, False], NO_LOGITS),
        ("logits", [1j, 2j], NO_LOGITS),
        ("logits", None, NO_LOGITS),
        ("logits", {"a": 1.0}, r"logits\['a'\] must be finite logits"),
        ("logits", {}, "logits has no model to draw"),
        ("logits", {1: [1.0, 2.0]}, "a name in logits must be a str, got 1"),
        ("logits", {"a": [1.0, 2.0], "b": [1.0]}, r"logits\['b'\] must be"),
        ("logits", [1.0, NAN], "logits must be finite, got"),
        ("logits", [1.0, np.inf], "logits must be finite, got"),
        ("temperatures", [], NO_TEMPERATURES),
        ("temperatures", [1.0, 0.0], r"temperatures\[1\] must be a finite number > 0"),
        ("class_names", dict.fromkeys("abc"), NAMES),
        ("class_names", set("abc"), NAMES),
        ("class_names", "abc", f"{NAMES} 'abc'"),
        ("class_names", range(3), NAMES),
        ("class_names", ["a", "b", None], NAMES),
        ("class_names", [b"a", b"b", b"c"], NAMES),
        ("class_names", np.array([["a", "b", "c"]]), NAMES),
        ("class_names", ["a", "b"], "class_names must be 3 str, got 2"),
        ("class_names", [], "class_names must be 3 str, got 0"),
        ("label", 3, "label must be a whole number from 0 to 2, got 3"),
        ("label", -1, "label must be a whole number from 0 to 2, got -1"),
        ("label", True, "label must be a whole number from 0 to 2, got True"),
        ("label", 1.0, "label must be a whole number from 0 to 2, got 1.0"),
        ("label", "b", "label must be a whole number from 0 to 2, got 'b'"),
        (
            "image",
            np.zeros(64),
            r"image must be an image .*got an array of shape \(64,",
        ),
        ("image", np.zeros((8, 8, 2)), "image must have 1, 3 or 4 channels"),
        ("image", np.zeros((1, 8, 8, 1)), r"image must be .*shape \(1, 8, 8, 1\)"),
        ("image", np.full((8, 8), NAN), "image must be finite"),
        ("image", np.zeros((0, 8)), "image must be an image"),
        ("image", "digit.png", "image must be an image .*got 'digit.png'"),
    ],
)
TRAINING = rows(
    "training_curves",
    {"histories": {"a": {"loss": [1.0]}}, "metric": "loss"},
    [
        ("histories", {}, "there are no histories to draw; give"),
        (
            "histories",
            None,
            "histories must be a dict by the name of the model, got None",
        ),
        ("histories", [{"loss": [1.0]}], "histories must be a dict by the name"),
        ("histories", {"a": [1.0]}, r"histories\['a'\] must be a dict of lists"),
        ("histories", {"loss": 1.0}, r"histories\['loss'\] must be a dict of lists"),
        ("histories", {"a": {"loss": []}}, "loss of 'a' must be a list of numbers"),
        ("histories", {"a": {"loss": 1.0}}, "loss of 'a' must be a list of numbers"),
        ("histories", {"a": {"loss": "1"}}, "loss of 'a' must be a list of numbers"),
        (
            "histories",
            {"a": {"loss": [[1.0]]}},
            "loss of 'a' must be a list of numbers",
        ),
        ("metric", None, "metric must be a str, got None"),
        ("metric", ["loss"], "metric must be a str, got"),
    ],
)
BIN = "must be a list of numbers from 0 to 1, one per bin"
RELIABILITY = rows(
    "reliability_diagram",
    {
        "edges": [0.5, 1.0],
        "accuracy": [0.4, 0.7],
        "confidence": [0.4, 0.9],
        "weight": [0.5, 0.5],
    },
    [
        ("edges", [0.5], rf"edges {BIN} of shape \(2,\), got an array of shape \(1,\)"),
        ("edges", [1.0, 0.5], "edges must rise, from above 0"),
        ("edges", [0.0, 1.0], "edges must rise, from above 0"),
        ("edges", [0.5, 2.0], "edges must be from 0 to 1"),
        ("accuracy", [0.4, 0.7, 0.9], rf"accuracy {BIN} of shape \(2,\)"),
        ("accuracy", [40.0, 70.0], "accuracy must be from 0 to 1"),
        ("accuracy", [0.4, NAN], "accuracy must be finite"),
        ("accuracy", None, f"accuracy {BIN}, got None"),
        ("confidence", [[0.4, 0.9]], f"confidence {BIN}"),
        ("confidence", ["a", "b"], f"confidence {BIN}"),
        ("confidence", [-0.1, 0.5], "confidence must be from 0 to 1"),
        ("weight", [], f"weight {BIN}"),
        ("weight", [5, 5], "weight must be from 0 to 1"),
        ("weight", [0.0, 0.0], "weight must sum to 1, got 0"),
        ("weight", [0.9, 0.9], "weight must sum to 1, got 1.8.*divide their numbers"),
        ("name", None, "name must be a str, got None"),
        ("kind", "values", 'kind must be "softmax" or "sigmoid", got \'values\''),
    ],
)
ANSWERS = rows(
    "roc_curves",
    {"scores": {"a": [0.1, 0.9]}, "labels": [0, 1]},
    [
        ("scores", [0.1, 0.9], "scores must be a dict by the name of the model, got"),
        ("scores", {}, "there are no scores to draw; give"),
        ("scores", {"a": [0.1, NAN]}, r"scores\['a'\] must be finite, got"),
        (
            "scores",
            {"a": np.ones((2, 2))},
            r"scores\['a'\] must be numbers .*got an arr",
        ),
        (
            "labels",
            [0, 1, 1],
            r"labels must be 0 or 1 .* of shape \(2,\), got an array",
        ),
        ("labels", [0, 2], "labels must be 0 or 1 for each score, got"),
        ("labels", [1, 1], "labels are all 1; a ROC curve needs a yes and a no"),
        ("labels", {"b": [0, 1]}, "labels has no 'a', which scores has; give both"),
        ("labels", ["no", "yes"], "labels must be 0 or 1 for each score, got"),
    ],
) + rows(
    "predicted_against_true",
    {"true": [1.0, 2.0], "predicted": [1.5, 2.5]},
    [
        ("true", None, "true must be finite numbers"),
        ("true", [1.0, NAN], "true must be finite, got"),
        (
            "true",
            [[1.0, 2.0], [3.0, 4.0]],
            r"predicted must be finite.*of shape \(2, 2\)",
        ),
        ("predicted", [1.0], r"predicted must be finite numbers .* of shape \(2,\)"),
        ("predicted", ["a", "b"], "predicted must be finite numbers"),
        ("value_names", ["a", "b"], "value_names must be 1 str, got 2"),
        ("name", 3, "name must be a str, got 3"),
    ],
)


def point(**changes):
    return types.SimpleNamespace(
        **{"name": "a", "parameters": 10, "accuracy": 0.5, **changes}
    )


SIZES = rows(
    "size_against_accuracy",
    {},
    [
        ("evaluations", [], "evaluations must be a list of kd.Evaluation, 1 at least"),
        ("evaluations", point(), "evaluations must be a list of kd.Evaluation"),
        ("evaluations", {"a": point()}, "evaluations must be a list of kd.Evaluation"),
        ("evaluations", ["a"], r"evaluations\[0\] must be a kd.Evaluation, got 'a'"),
        ("evaluations", [{"name": "a"}], r"\[0\] must be a kd.Evaluation.*compare\("),
        ("evaluations", [point(parameters=None)], "none of the evaluations has param"),
        ("evaluations", [point(parameters=-1)], r"\[0\].parameters must be a whole"),
        ("evaluations", [point(parameters="10")], r"\[0\].parameters must be a whole"),
        (
            "evaluations",
            [point(accuracy=50)],
            r"\[0\].accuracy must be a number from 0",
        ),
        (
            "evaluations",
            [point(accuracy=NAN)],
            r"\[0\].accuracy must be a number from 0",
        ),
        (
            "evaluations",
            [point(accuracy=None)],
            r"\[0\].accuracy must be a number from",
        ),
    ],
)
COVARIANCE = rows(
    "class_covariance",
    {"covariance": np.eye(4), "clusters": [[0, 1], [2, 3]]},
    [
        (
            "covariance",
            np.ones(4),
            "covariance must be finite numbers `.classes, class",
        ),
        ("covariance", np.ones((4, 3)), "must be `.classes, classes.*got shape .4, 3."),
        ("covariance", -np.eye(4), "with variances >= 0 on its diagonal"),
        ("covariance", np.full((4, 4), NAN), "covariance must be finite, got"),
        ("covariance", "covariance.npy", "covariance must be finite numbers"),
        ("clusters", [0, 1], r"clusters\[0\] must be a list of class numbers, 1 at"),
        (
            "clusters",
            [[0, 4]],
            r"clusters\[0\]\[1\] must be a whole number from 0 to 3",
        ),
        ("clusters", [[0], []], r"clusters\[1\] must be a list of class numbers, 1 at"),
        ("clusters", [["a"]], r"clusters\[0\]\[0\] must be a whole number from 0 to 3"),
        ("clusters", [], "clusters must be a list of lists of class numbers, 1 at"),
        ("clusters", None, "clusters must be a list of lists of class numbers"),
        ("class_names", dict.fromkeys("abcd"), NAMES),
        ("class_names", set("abcd"), NAMES),
        ("class_names", "abcd", NAMES),
        ("class_names", [0, 1, 2, 3], NAMES),
        ("class_names", list("abc"), "class_names must be 4 str, got 3"),
    ],
)


def share(**changes):
    good = {"of": 0, "examples": 20, "generalist": 10, "ensemble": 9}
    return types.SimpleNamespace(**{**good, **changes})


NO_SHARES = "shares must be a list of shares, a report's by_"
SHARES = rows(
    "accuracy_by_coverage",
    {},
    [
        ("shares", [], NO_SHARES),
        ("shares", None, NO_SHARES),
        ("shares", share(), NO_SHARES),
        (
            "shares",
            [(0, 20, 10, 9)],
            r"shares\[0\] must be a share of a Special.*\(0, 20",
        ),
        ("shares", [share(examples=0)], r"shares\[0\].examples must be a whole number"),
    ],
) + rows(
    "accuracy_by_cluster",
    {"shares": [share(), share(of=1)], "clusters": [[0, 1], [2, 3]]},
    [
        ("shares", [], NO_SHARES),
        ("shares", [0.5], r"shares\[0\] must be a share.*give report.by_cluster"),
        ("shares", [share(of=2)], "shares are of cluster 2, but there are 2 clusters"),
        ("clusters", [[0, 1]], "shares are of cluster 1, but there are 1 clusters"),
        (
            "clusters",
            [[0, -1]],
            r"clusters\[0\]\[1\] must be a whole number >= 0, got -1",
        ),
        ("clusters", {0: [0]}, "clusters must be a list of lists of class numbers"),
        ("class_names", dict.fromkeys(range(4)), NAMES),
        ("class_names", {"a", "b", "c", "d"}, NAMES),
        ("class_names", "abcd", NAMES),
        ("class_names", range(4), NAMES),
        (
            "class_names",
            list("abc"),
            "class_names must be one str per class, up to class 3",
        ),
    ],
)
RECORD = {"specialist": 0, "worker": "a", "began": 1.0, "ended": 2.0}
WORKERS = rows(
    "training_by_worker",
    {},
    [
        (
            "records",
            [],
            "records must be a list of builder.records after fit, 1 at least",
        ),
        ("records", None, "records must be a list of builder.records after fit"),
        ("records", RECORD, "records must be a list of builder.records after fit"),
        (
            "records",
            [1],
            r"records\[0\] must be a dict of specialist, worker, began, en",
        ),
        ("records", [{"worker": "a"}], r"records\[0\] must be a dict of specialist"),
        (
            "records",
            [{**RECORD, "began": NAN}],
            r"records\[0\]\['began'\] must be a time",
        ),
        (
            "records",
            [{**RECORD, "ended": 0.0}],
            r"\['ended'\] must be a time from 1.0 on",
        ),
    ],
)
TRIALS = pd.DataFrame(
    {
        "kind": "searched",
        "status": "COMPLETED",
        "temperature": [1.0, 2.0, 4.0],
        "alpha": [0.1, 0.5, 1.0],
        "val_accuracy": [0.8, 0.9, 0.7],
        "began": [0.0, 1.0, 2.0],
        "seconds": 1.0,
    }
)


def searched(function, **good):
    return rows(
        function,
        {"trials": TRIALS, **good},
        [
            (
                "trials",
                None,
                "trials must be a DataFrame, got None; give result.trials",
            ),
            ("trials", TRIALS.to_dict(), "trials must be a DataFrame, got"),
            ("trials", TRIALS[:0], "no trial was completed with 'val_accuracy'"),
            ("trials", TRIALS.assign(status="FAILED"), "no trial was completed with"),
            ("trials", TRIALS.assign(val_accuracy=NAN), "no trial was completed with"),
            (
                "trials",
                TRIALS.assign(val_accuracy="a"),
                "objective must be a column of nu",
            ),
            (
                "trials",
                TRIALS.drop(columns="status"),
                "trials must have a column 'status'",
            ),
            ("objective", "val_loss", "no trial was completed with 'val_loss'"),
            ("objective", ["val_accuracy"], "objective must be a str, got"),
            ("is_max", "yes", "is_max must be True or False, got 'yes'"),
        ],
    )


SEARCH = [
    *searched("search_plane"),
    *searched("parallel_coordinates", hyperparameters=["alpha"]),
    *searched("best_so_far"),
    *rows(
        "search_plane",
        {},
        [
            (
                "trials",
                TRIALS.drop(columns="alpha"),
                "must have a column 'alpha'; they ha",
            ),
            (
                "trials",
                TRIALS.assign(temperature=0.0),
                "temperatures of the trials must be",
            ),
            (
                "trials",
                TRIALS.assign(alpha=1.5),
                "alphas of the trials must be from 0 to",
            ),
        ],
    ),
    *rows(
        "best_so_far",
        {},
        [
            (
                "trials",
                TRIALS.drop(columns="began"),
                "must have a column 'began'; they ha",
            ),
            (
                "trials",
                TRIALS.assign(seconds=NAN),
                "no completed trial says when it began",
            ),
        ],
    ),
    *rows(
        "parallel_coordinates",
        {"trials": TRIALS},
        [
            (
                "hyperparameters",
                "alpha",
                "hyperparameters must be a list of str, got 'al",
            ),
            (
                "hyperparameters",
                ["width"],
                "trials must have a column 'width'; they have",
            ),
            ("hyperparameters", [0], "hyperparameters must be a list of str, got"),
        ],
    ),
]
MEASURED = {
    "export": "a.onnx",
    "batch_size": 8,
    "threads": 1,
    "p50_ms": 0.4,
    "p99_ms": 0.5,
    "examples_per_second": 2e4,
}
SPEEDS = rows(
    "latency_and_throughput",
    {},
    [
        ("rows", [], "rows must be a list of the rows of a benchmark, 1 at least, got"),
        (
            "rows",
            None,
            "rows must be a list of the rows of a benchmark, 1 at least, got None",
        ),
        ("rows", MEASURED, "rows must be a list of the rows of a benchmark"),
        ("rows", [1.0], r"rows\[0\] must be a dict of export, batch_size, threads"),
        ("rows", [{"export": "a.onnx"}], r"rows\[0\] must be a dict of export"),
        ("rows", [{**MEASURED, "batch_size": 0}], r"\['batch_size'\] must be a whole"),
        ("rows", [{**MEASURED, "threads": 1.5}], r"\['threads'\] must be a whole"),
        ("rows", [{**MEASURED, "p50_ms": NAN}], r"\['p50_ms'\] must be a finite"),
        ("rows", [{**MEASURED, "p50_ms": 0.0}], r"\['p50_ms'\] must be a finite"),
        (
            "rows",
            [MEASURED, {**MEASURED, "p99_ms": 0.1}],
            r"rows\[1\]\['p99_ms'\] must be",
        ),
        (
            "rows",
            [{**MEASURED, "examples_per_second": "fast"}],
            r"\['examples_per_second'\] must be a finite number > 0, got 'fast'",
        ),
    ],
)

ROWS = [
    *CURVES,
    *SPEEDS,
    *SOFT_TARGETS,
    *TRAINING,
    Row(
        "plots.training_curves",
        lambda: kd.plots.training_curves({"a": {"loss": [1.0]}}, "acc"),
        "no history has 'acc'; there are loss",
        KeyError,
    ),
    *RELIABILITY,
    *ANSWERS,
    *SIZES,
    *COVARIANCE,
    *SHARES,
    *WORKERS,
    *SEARCH,
]
