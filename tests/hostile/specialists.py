"""Wrong uses of specialists."""

import functools

import keras
import numpy as np
import scipy.sparse
import tensorflow as tf

import keras_distill as kd
from tests.hostile import Row
from tests.hostile.things import data, model, student

NAN = float("nan")
X, Y = data()
CLUSTERS = [[0, 1], [2, 3]]


@functools.cache
def ensemble():
    """Returns an ensemble of two specialists."""
    return kd.SpecialistEnsemble(student(), [model(3), model(3)], CLUSTERS)


@functools.cache
def builder():
    """Returns a builder that no row may let train."""
    return kd.SpecialistBuilder(student(), CLUSTERS)


def clustered(name, value):
    good = {"covariance": np.kron(np.eye(2), np.ones((3, 3))), "n_clusters": 2}
    return lambda: kd.cluster_classes(**{**good, name: value})


def built(name, value):
    good = {"generalist": student(), "clusters": CLUSTERS}
    return lambda: kd.SpecialistBuilder(**{**good, name: value})


def fitted(name, value):
    good = {"data": (X, Y), "verbose": False}
    return lambda: builder().fit(**{**good, name: value})


def made(name, value):
    def call():
        good = {
            "generalist": student(),
            "specialists": [model(3)],
            "clusters": [[0, 1]],
        }
        kd.SpecialistEnsemble(**{**good, name: value})

    return call


def reported(name, value):
    def call():
        given = {"ensemble": ensemble(), "dataset": (X, Y)}
        made = value() if callable(value) else value
        kd.specialist_report(**{**given, name: made})

    return call


CALLS = {
    "cluster_classes": (
        clustered,
        [
            ("covariance", None, "covariance must be numbers `.classes, classes.`"),
            ("covariance", "x.npy", "covariance must be numbers `.classes, classes.`"),
            ("covariance", [[1.0], [1.0, 2.0]], "covariance must be numbers"),
            (
                "covariance",
                np.ones(6),
                "covariance must be numbers.*got an array of sha",
            ),
            (
                "covariance",
                np.ones((6, 5)),
                "must have shape .classes, classes., got .6",
            ),
            ("covariance", np.full((6, 6), NAN), "covariance is not finite; check the"),
            (
                "covariance",
                scipy.sparse.eye_array(6, 5),
                "must have shape .classes, cl",
            ),
            ("n_clusters", 1, "n_clusters must be a whole number from 2 to 3, got 1"),
            ("n_clusters", 4, "n_clusters must be a whole number from 2 to 3, got 4"),
            (
                "n_clusters",
                2.0,
                "n_clusters must be a whole number from 2 to 3, got 2.0",
            ),
            ("n_clusters", True, "n_clusters must be a whole number from 2 to 3"),
            ("max_size", 2, "max_size must be a whole number >= 3, got 2"),
            ("max_size", "3", "max_size must be a whole number >= 3, got '3'"),
            (
                "clusters_per_class",
                2,
                "clusters_per_class must be .*from 1 to 1, got 2",
            ),
            (
                "clusters_per_class",
                0,
                "clusters_per_class must be .*from 1 to 1, got 0",
            ),
            ("correlation", "no", "correlation must be True or False, got 'no'"),
            ("seed", -1, "seed must be a whole number >= 0, got -1"),
            ("seed", None, "seed must be a whole number >= 0, got None"),
        ],
    ),
    "SpecialistBuilder": (
        built,
        [
            ("generalist", None, "generalist must be a keras.Model, got None"),
            (
                "generalist",
                "model.keras",
                "generalist must be a keras.Model, got 'mode",
            ),
            (
                "clusters",
                None,
                "clusters must be a list of lists of class numbers, got No",
            ),
            ("clusters", "01", "clusters must be a list of lists of class numbers"),
            (
                "clusters",
                {0: [0, 1]},
                "clusters must be a list of lists of class numbers",
            ),
            ("clusters", [], "specialists need at least 2 clusters, got 0"),
            ("clusters", [[0, 1]], "specialists need at least 2 clusters, got 1"),
            (
                "clusters",
                [0, 1],
                "cluster 0 must be a sequence of class numbers, got 0",
            ),
            (
                "clusters",
                [[0, 9], [1, 2]],
                "cluster 0 names the class 9, but the gener",
            ),
            (
                "clusters",
                [[0, -1], [1, 2]],
                "cluster 0 names the class -1, but the gen",
            ),
            ("clusters", [[0, 0], [1, 2]], "cluster 0 names a class twice"),
            (
                "clusters",
                [[0.5, 1], [1, 2]],
                "cluster 0 must be a sequence of class nu",
            ),
            (
                "clusters",
                [[0], [1, 2]],
                "a specialist tells at least two classes apart",
            ),
            ("clusters", [[0, 1, 2, 3], [1, 2]], "cluster 0 holds all 4 classes"),
            ("build_specialist", 3, "build_specialist must be a function"),
            ("build_specialist", student(), "build_specialist must be a function"),
            ("head", "both", "head must be"),
            (
                "n",
                0,
                "n, if it is not None for all specialists, must be a whole number",
            ),
            (
                "n",
                5,
                "n, if it is not None for all specialists, must be a whole number",
            ),
            (
                "n",
                "1",
                "n, if it is not None for all specialists, must be a whole number",
            ),
        ],
    ),
    "SpecialistBuilder.fit": (
        fitted,
        [
            ("data", None, "must be .x, y. arrays"),
            ("data", X, "specialists are trained on labelled data: give .x, y."),
            ("data", (X, Y[1:]), r"have different lengths: \[23, 24\]"),
            (
                "data",
                (X, Y + 9),
                "labels go from 9 to 12, but the generalist has the cl",
            ),
            (
                "augment",
                "flip",
                "augment must be a function of one example and an int64",
            ),
            (
                "augment",
                lambda x, seed: x[:3],
                r"augment makes examples of shapes \[\(3,\)\], and the generalist takes \[\(5,",
            ),
            (
                "augment",
                lambda x, seed: (x, x),
                r"augment makes examples of shapes \[\(5,\), \(5,\)\]",
            ),
            (
                "augment",
                lambda x, seed: x + tf.random.normal((5,)),
                "augment makes other views of the same examples by the same seeds",
            ),
            (
                "augment",
                keras.layers.GaussianNoise(0.1),
                "augment is a layer, '.*', which draws from a seed of its own",
            ),
            ("augment", lambda x: x, "augment must be a function of one example and"),
            ("augment", lambda x, seed: None, "augment must return .* returns None"),
            (
                "augment",
                lambda x, seed: tf.numpy_function(lambda a: a, [x], tf.float32),
                "augment does not say the shape of what it makes",
            ),
            (
                "augment",
                lambda x, seed: tf.strings.as_string(x),
                r"augment makes examples of dtypes \['string'\] of inputs of \['float",
            ),
            ("hard_epochs", -1, "hard_epochs must be a whole number >= 0, got -1"),
            ("soft_epochs", 1.5, "soft_epochs must be a whole number >= 0, got 1.5"),
            ("hard_learning_rate", 0, "hard_learning_rate must be > 0, got 0"),
            ("soft_learning_rate", NAN, "soft_learning_rate must be > 0, got nan"),
            ("temperature", 0, "temperature must be a finite number > 0, got 0"),
            ("temperature", "4", "temperature must be a finite number > 0, got '4'"),
            ("alpha", 2, "alpha must be a number from 0 to 1, got 2"),
            ("batch_size", 0, "batch_size must be a whole number >= 1, got 0"),
            ("batch_size", True, "batch_size must be a whole number >= 1, got True"),
            ("batched", "no", "batched must be True or False, got 'no'"),
            ("seed", -1, "seed must be a whole number >= 0, got -1"),
            ("n_jobs", 0, "n_jobs must be a whole number >= 1, -1 for as many"),
            ("n_jobs", 1.5, "n_jobs must be a whole number >= 1, -1 for as many"),
            ("threads", 0, "threads must be a whole number >= 1, got 0"),
            ("work_dir", "", "work_dir must be a path, got ''"),
            ("work_dir", 3, "work_dir must be a path, got 3"),
            ("work_dir", "gs://bucket/x", "work_dir must be a folder that is local or"),
            ("verbose", "no", "verbose must be True or False, .*got 'no'"),
        ],
    ),
    "SpecialistEnsemble": (
        made,
        [
            ("generalist", None, "generalist must be a keras.Model, got None"),
            (
                "specialists",
                student(),
                "specialists must be a list of models, got <Seq",
            ),
            ("specialists", None, "specialists must be a list of models, got None"),
            ("specialists", [None], "specialist 0 must be a keras.Model, got None"),
            (
                "specialists",
                [],
                "there are 0 specialists and 1 clusters; give one cluster",
            ),
            (
                "specialists",
                [student()],
                "specialist 0 must have one output .batch, 3.",
            ),
            ("clusters", [[0, 1], [2, 3]], "there are 1 specialists and 2 clusters"),
            ("clusters", [[0, 7]], "cluster 0 names the class 7, but the generalist"),
            ("clusters", "01", "clusters must be a list of lists of class numbers"),
            ("n", True, "n, if it is not None for all specialists, must be a whole"),
            ("head", None, "head must be"),
            ("routed", "no", "routed must be True or False, got 'no'"),
            ("tolerance", -1.0, "tolerance must be"),
            ("tolerance", "1e-6", "tolerance must be"),
            ("max_iterations", 0, "max_iterations must be a whole number >= 1, got 0"),
        ],
    ),
    "specialist_report": (
        reported,
        [
            ("ensemble", None, "ensemble must be a SpecialistEnsemble, got None"),
            ("ensemble", student, "ensemble must be a SpecialistEnsemble, got <Seq"),
            ("dataset", None, "dataset of the report must be .x, y. arrays"),
            ("dataset", (X,), "dataset of the report brings no labels"),
            ("dataset", (X, Y[1:]), "have different lengths"),
            (
                "dataset",
                (X, Y + 9),
                "labels must be from 0 to 3, since the model has 4",
            ),
            ("dataset", (X, Y - 0.5), "labels must be whole numbers from 0 to 3, got"),
            ("dataset", (X[:0], Y[:0]), "the dataset is empty; check how it was split"),
            (
                "dataset",
                lambda: tf.data.Dataset.from_tensors((X, Y)).repeat(),
                "the dataset of the report is endless; give it before repeat",
            ),
        ],
    ),
}
METHODS = [
    (
        "without_specialist",
        lambda e: e.without_specialist("a"),
        "index must be a whole",
    ),
    (
        "without_specialist",
        lambda e: e.without_specialist(True),
        "index must be a whole",
    ),
    (
        "with_specialist",
        lambda e: e.with_specialist(None, [0, 2]),
        "specialist 2 must be",
    ),
    (
        "with_specialist",
        lambda e: e.with_specialist(model(3), [0, 9]),
        "names the class 9",
    ),
    (
        "with_specialist",
        lambda e: e.with_specialist(model(4), [0, 2]),
        "have one output",
    ),
    (
        "with_settings",
        lambda e: e.with_settings(n=0),
        "must be a whole number from 1 to 4",
    ),
    (
        "with_settings",
        lambda e: e.with_settings(k=1),
        "has no setting 'k'; they are n, ro",
    ),
]
ROWS = [
    Row(name, call(argument, value), sentence)
    for name, (call, wrong) in CALLS.items()
    for argument, value, sentence in wrong
] + [
    Row(f"SpecialistEnsemble.{name}", lambda call=call: call(ensemble()), sentence)
    for name, call, sentence in METHODS
]
