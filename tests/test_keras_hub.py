"""A KerasHub task applies its preprocessor in its own methods, which we do not call."""

import keras
import keras_hub
import keras_tuner
import numpy as np
import pytest

import keras_distill as kd
from tests.conftest import SPARSE

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]
TEXTS = np.array(["good film", "bad film", "bad", "film film good"])
LABELS = np.array([0, 1, 1, 0])
LENGTH = 6


def task(preprocessor="its own", seed=0):
    keras.utils.set_random_seed(seed)
    hub = keras_hub.models
    if preprocessor == "its own":
        tokenizer = hub.BertTokenizer(vocabulary=VOCABULARY)
        preprocessor = hub.BertTextClassifierPreprocessor(
            tokenizer, sequence_length=LENGTH
        )
    backbone = hub.BertBackbone(
        vocabulary_size=len(VOCABULARY),
        num_layers=1,
        num_heads=1,
        hidden_dim=4,
        intermediate_dim=8,
        max_sequence_length=LENGTH,
    )
    return hub.BertTextClassifier(backbone, num_classes=2, preprocessor=preprocessor)


def plain(outputs=2):
    return keras.Sequential([keras.Input((LENGTH,)), keras.layers.Dense(outputs)])


X = np.ones((4, LENGTH), "float32")
DOORS = {
    "student": lambda one, folder: kd.Distiller(one),
    "teacher": lambda one, folder: kd.Distiller(plain(), one),
    "one of several teachers": lambda one, folder: kd.Distiller(
        plain(), [plain(), one]
    ),
    "as_teacher": lambda one, folder: kd.as_teacher(one),
    "a file": lambda one, folder: (
        one.save(folder / "task.keras") or kd.as_teacher(folder / "task.keras")
    ),
    "soft targets": lambda one, folder: kd.SoftTargets.write(
        folder / "soft", one, X, verbose=False
    ),
    "evaluate": lambda one, folder: kd.evaluate(one, (X, LABELS), timing=False),
    "compare": lambda one, folder: kd.compare(
        {"plain": plain()}, (X, LABELS), teacher=one, timing=False, verbose=False
    ),
    "export": lambda one, folder: kd.export_savedmodel(one, folder, verbose=False),
    "generalist": lambda one, folder: kd.SpecialistEnsemble(one),
    "specialist": lambda one, folder: kd.SpecialistEnsemble(plain(3), [one], [[0, 1]]),
    "builder": lambda one, folder: kd.SpecialistBuilder(one, [[0, 1]]),
    "covariance": lambda one, folder: kd.class_covariance(one, X),
    "search": lambda one, folder: kd.search(
        lambda hp: plain(),
        (X, LABELS),
        (X, LABELS),
        teacher=one,
        max_trials=2,
        directory=folder / "search",
        verbose=False,
    ),
    "tuned student": lambda one, folder: kd.DistillationHyperModel(
        lambda hp: one, plain()
    ).build(keras_tuner.HyperParameters()),
}


@pytest.fixture(scope="module")
def with_preprocessor():
    return task()


@pytest.mark.parametrize("door", DOORS)
def test_a_task_with_a_preprocessor_is_refused_at(door, with_preprocessor, tmp_path):
    with pytest.raises(ValueError, match="carries a preprocessor .*preprocessor=None"):
        DOORS[door](with_preprocessor, tmp_path)
    assert not list(tmp_path.rglob("manifest*"))


def test_a_callable_of_a_preprocessor_is_not_looked_into():
    one = task(lambda x: x)
    with pytest.raises(ValueError, match=r"carries a preprocessor \(function\)"):
        kd.Distiller(plain(), one)


@pytest.mark.slow
def test_without_its_preprocessor_a_task_is_a_model_like_any(with_preprocessor):
    """As the sentence says: the same model, and the data preprocessed."""
    bare = task(None)
    inputs = with_preprocessor.preprocessor(TEXTS)
    expected = with_preprocessor.predict(TEXTS, verbose=0)
    np.testing.assert_allclose(
        kd.as_teacher(bare)(inputs, 1.0).logits, expected, rtol=1e-5, atol=1e-7
    )
    student = task(None, seed=1)
    distiller = kd.Distiller(student, bare, temperature=2.0)
    distiller.compile("sgd", SPARSE)
    history = distiller.fit(inputs, LABELS, verbose=0).history
    assert history["soft_loss"][0] > 0
    np.testing.assert_array_equal(
        distiller.predict(inputs, verbose=0), student.predict(inputs, verbose=0)
    )


def test_the_callable_that_the_sentence_gives_teaches_from_raw_data(with_preprocessor):
    one = with_preprocessor
    teacher = kd.as_teacher(lambda x: one(one.preprocessor(x), training=False), True)
    expected = one.predict(TEXTS, verbose=0)
    np.testing.assert_allclose(
        teacher(keras.ops.convert_to_tensor(TEXTS), 1.0).logits,
        expected,
        rtol=1e-5,
        atol=1e-7,
    )


def test_a_preprocessor_of_the_users_own_is_none_of_ours():
    class Mine(keras.Model):
        def __init__(self):
            super().__init__()
            self.preprocessor = keras.layers.Rescaling(2.0)
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return self.dense(self.preprocessor(x))

    mine = Mine()
    mine(X)
    np.testing.assert_array_equal(kd.as_teacher(mine, True)(X, 1.0).logits, mine(X))
    kd.Distiller(mine, plain(), student_from_logits=True)
