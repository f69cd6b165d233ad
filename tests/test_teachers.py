import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import softmax

import keras_distill as kd
from keras_distill.distiller import Distiller
from keras_distill.export.savedmodel import export_savedmodel
from keras_distill.soft_targets.distillation_inputs import DistillationInputs
from keras_distill.teachers import as_teacher
from tests.conftest import CLASSES, FEATURES, SPARSE, copy_of, largest_difference, mlp


def trained_by(teacher, data, **kwargs):
    """Weights of one student after two epochs under a teacher."""
    keras.utils.set_random_seed(7)
    student = mlp(6)
    distiller = Distiller(student, teacher, **kwargs)
    distiller.compile(keras.optimizers.SGD(0.1), SPARSE)
    distiller.fit(*data, epochs=2, shuffle=False, verbose=0)
    return student.get_weights()


@pytest.fixture
def teacher():
    keras.utils.set_random_seed(3)
    return mlp(32, name="teacher")


def with_softmax(model):
    same = mlp(32, activation="softmax", name="ends_in_softmax")
    same.set_weights(model.get_weights())
    return same


@pytest.mark.slow
def test_softmax_teacher_trains_like_the_same_teacher_with_logits(teacher, data):
    expected = trained_by(teacher, data)
    assert largest_difference(expected, trained_by(with_softmax(teacher), data)) < 1e-5


@pytest.mark.slow
def test_softmax_student_trains_like_the_same_student_with_logits(teacher, data):
    expected = trained_by(teacher, data)
    keras.utils.set_random_seed(7)
    student = mlp(6, activation="softmax")
    distiller = Distiller(student, teacher)
    distiller.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    distiller.fit(*data, epochs=2, shuffle=False, verbose=0)
    assert largest_difference(expected, student.get_weights()) < 1e-5


@pytest.mark.slow
def test_keras_applications_teacher_with_and_without_softmax():
    make = keras.applications.MobileNetV3Small
    kwargs = {"input_shape": (32, 32, 3), "weights": None, "classes": CLASSES}
    logits = make(classifier_activation=None, **kwargs)
    probabilities = make(**kwargs)
    probabilities.set_weights(logits.get_weights())
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (8, 32, 32, 3)).astype("float32")
    y = rng.integers(CLASSES, size=8)

    def train(teacher):
        keras.utils.set_random_seed(7)
        student = keras.Sequential(
            [
                keras.Input((32, 32, 3)),
                keras.layers.Rescaling(1 / 255),
                keras.layers.Flatten(),
                keras.layers.Dense(CLASSES),
            ]
        )
        distiller = Distiller(student, teacher)
        distiller.compile(keras.optimizers.SGD(0.01), SPARSE)
        distiller.fit(x, y, epochs=2, shuffle=False, verbose=0)
        return student.get_weights()

    assert largest_difference(train(logits), train(probabilities)) < 1e-5


def test_every_way_to_hand_over_one_teacher_trains_the_same(teacher, data, tmp_path):
    expected = trained_by(teacher, data)
    for ending in ("keras", "h5", "hdf5"):
        teacher.save(tmp_path / f"teacher.{ending}")
    teacher.export(tmp_path / "exported", verbose=False)
    ours = export_savedmodel(teacher, tmp_path / "ours", verbose=False)
    softmax_file = tmp_path / "softmax.keras"
    with_softmax(teacher).save(softmax_file)
    ways = {
        "path": tmp_path / "teacher.keras",
        "str": str(tmp_path / "teacher.keras"),
        "h5": tmp_path / "teacher.h5",
        "hdf5": str(tmp_path / "teacher.hdf5"),
        "softmax": softmax_file,
        "our SavedModel": ours,
        "list of one": [teacher],
        "callable": lambda x: teacher(x, training=False),
    }
    for name, way in ways.items():
        flag = True if name == "callable" else None
        weights = trained_by(way, data, teacher_from_logits=flag)
        assert largest_difference(expected, weights) < 1e-5, name
    with pytest.warns(
        UserWarning, match="do not sum to 1, so they are taken as logits"
    ):
        weights = trained_by(tmp_path / "exported", data)
    assert largest_difference(expected, weights) < 1e-5


@pytest.mark.slow
def test_kept_soft_targets_train_like_the_live_teacher(teacher, data):
    x, y = data
    expected = trained_by(teacher, data)
    kept = DistillationInputs(x, teacher.predict(x, verbose=0))
    assert largest_difference(expected, trained_by(None, (kept, y))) < 1e-5
    dataset = tf.data.Dataset.from_tensor_slices((kept, y)).batch(32)
    assert largest_difference(expected, trained_by(None, (dataset,))) < 1e-5


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_list_means_tempered_probabilities_or_logits(temperature):
    x = np.random.default_rng(0).normal(size=(4, FEATURES)).astype("float32")
    models = [mlp(8), mlp(16), mlp(32)]
    answers = np.stack([m.predict(x, verbose=0) for m in models])
    z = as_teacher(models)(x, temperature).logits
    np.testing.assert_allclose(
        softmax(z / temperature, -1),
        softmax(answers / temperature, -1).mean(0),
        rtol=1e-5,
    )
    z = as_teacher(models, average="logits")(x, temperature).logits
    np.testing.assert_allclose(z, answers.mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_list_mixes_probabilities_and_logits(teacher, data):
    mixed = trained_by([teacher, with_softmax(teacher)], data)
    assert largest_difference(trained_by(teacher, data), mixed) < 1e-5


@pytest.mark.slow
def test_teacher_may_need_other_inputs(teacher, data):
    """A callable preprocesses for the teacher; the student sees the data as it is."""
    x, y = data
    expected = trained_by(teacher, (x, y))
    scaled = trained_by(
        lambda raw: teacher(raw / 2.0, training=False),
        (2.0 * x, y),
        teacher_from_logits=True,
    )
    assert largest_difference(expected, scaled) > 1e-3  # the student saw 2 x
    seen = []
    as_teacher(lambda raw: seen.append(raw) or teacher(raw / 2.0), True)(2 * x, 1.0)
    np.testing.assert_array_equal(seen[0], 2 * x)


def test_teacher_is_never_touched(data):
    teacher = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(CLASSES),
        ]
    )
    before = [np.array(w) for w in teacher.get_weights()]
    student = mlp(6)
    distiller = Distiller(student, teacher)
    distiller.compile("adam", SPARSE)
    distiller.fit(*data, epochs=2, verbose=0)
    assert teacher.trainable
    assert all(layer.trainable for layer in teacher.layers)
    for old, new in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert len(distiller.weights) == len(student.weights)
    assert teacher not in distiller._flatten_layers()
    ours = {id(v) for v in distiller.variables} | {
        id(v) for v in distiller.optimizer.variables
    }
    assert not ours & {id(v) for v in teacher.variables}
    # and its own training goes on
    teacher.compile("adam", SPARSE)
    teacher.fit(*data, verbose=0)


def test_subclassed_teacher_without_training_argument(data):
    class Plain(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(CLASSES)

        def call(self, x):
            return self.dense(x)

    plain = Plain()
    with pytest.warns(UserWarning, match="taken as logits"):
        trained_by(plain, data)


@pytest.mark.slow
def test_callable_that_gives_probabilities_is_noticed(teacher, data):
    expected = trained_by(teacher, data)
    with pytest.warns(UserWarning, match="taken as probabilities"):
        weights = trained_by(
            tf.function(lambda x: tf.nn.softmax(teacher(x, training=False))), data
        )
    assert largest_difference(expected, weights) < 1e-4


@pytest.mark.slow
def test_same_teacher_twice_is_the_teacher(teacher, data):
    expected = trained_by(teacher, data)
    assert largest_difference(expected, trained_by([teacher, teacher], data)) < 1e-5


@pytest.mark.parametrize(
    ("teacher", "error", "message"),
    [
        ("no/such/teacher.keras", FileNotFoundError, "does not exist; give a .keras"),
        ([], ValueError, "empty list; give at least one"),
        (3, TypeError, "teacher must be a keras.Model, a list of teachers, a path"),
    ],
)
def test_wrong_teachers_are_refused(teacher, error, message):
    with pytest.raises(error, match=message):
        Distiller(mlp(), teacher)


def test_a_saved_model_teaches_by_its_float_outputs(data, teacher, tmp_path):
    """What else it serves, a label or a name, is no soft target."""
    serve = tf.function(
        lambda x: {"out": teacher(x), "label": tf.argmax(teacher(x), -1)},
        input_signature=[tf.TensorSpec((None, FEATURES))],
    )
    module = tf.Module()
    module.kept = teacher.variables
    tf.saved_model.save(module, tmp_path / "1", signatures=serve)
    x = data[0]
    answer = as_teacher(tmp_path / "1", from_logits=True)(x, 1.0).logits
    np.testing.assert_allclose(answer, teacher(x), rtol=1e-6)


def test_a_path_in_the_home_folder_is_one_everywhere(teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    teacher.save(tmp_path / "teacher.keras")
    x = np.ones((4, FEATURES), "float32")
    folder = tmp_path / "soft"
    kd.SoftTargets.write(folder, "~/teacher.keras", x, verbose=False)
    kd.SoftTargets.open(folder, teacher="~/teacher.keras")
    kd.SoftTargets.open(folder, teacher=teacher)
    teacher.save(tmp_path / "teacher.h5")
    kd.SoftTargets.open(folder, teacher="~/teacher.h5")
    np.testing.assert_allclose(as_teacher("~/teacher.keras")(x, 1.0).logits, teacher(x))


@pytest.mark.slow
def test_wrong_paths_are_refused(tmp_path, teacher):
    (tmp_path / "model.pt").write_text("")
    with pytest.raises(
        ValueError, match="neither a .keras or .h5 file nor a directory"
    ):
        Distiller(mlp(), tmp_path / "model.pt")
    export_savedmodel(teacher, tmp_path / "served", verbose=False)
    with pytest.raises(ValueError, match="An export directory holds numbered versions"):
        Distiller(mlp(), tmp_path / "served")


def test_list_with_different_classes_is_refused():
    with pytest.raises(ValueError, match=r"different numbers of classes: \[5\], \[7\]"):
        as_teacher([mlp(), mlp(classes=7)])


def test_unknown_average_is_refused():
    with pytest.raises(ValueError, match='must be "probabilities" or "logits"'):
        Distiller(mlp(), [mlp()], teacher_average="median")


def test_copy_is_independent(teacher):
    copy = copy_of(teacher)
    assert largest_difference(copy.get_weights(), teacher.get_weights()) == 0.0


def test_a_teacher_object_serves_two_distillers():
    """Neither what one matches nor what it says of logits is the other's."""
    # Its layers say neither, so that the user may say both.
    shared = as_teacher(mlp(32, activation=lambda z: z), from_logits=True)
    first = kd.Distiller(
        mlp(6), shared, distillation_loss=kd.FeatureLoss("hidden", "hidden", "auto")
    )
    second = kd.Distiller(mlp(6), shared)
    third = kd.Distiller(mlp(6), shared, teacher_from_logits=False)
    x = np.ones((2, 8), "float32")
    answers = [d._state.teacher(x, 1.0) for d in (first, second, third)]
    assert [set(answer.layers) for answer in answers] == [{"hidden"}, set(), set()]
    assert [d._state.teacher.from_logits for d in (first, second, third)] == [
        True, True, False,
    ]  # fmt: skip
    assert shared.from_logits is True
    assert shared(x, 1.0).layers == {}


def test_a_list_of_teacher_objects_is_told_what_it_gives():
    members = [as_teacher(lambda x: x), as_teacher(lambda x: x)]
    bound = as_teacher(as_teacher(members), from_logits=True)
    assert [member.from_logits for member in bound.members] == [True, True]
    assert [member.from_logits for member in members] == [None, None]
