import keras
import keras_hub
import numpy as np
import pytest

import keras_distill as kd
from tests.conftest import SPARSE


def encoder(depth, width=4, name=None):
    layers = [keras.layers.Dense(width, name=f"block_{i}") for i in range(depth)]
    return keras.Sequential([keras.Input((4,)), *layers], name=name)


def nested(depth, width=4, seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(4, name="stem")(inputs)
    hidden = encoder(depth, width, name="encoder")(hidden)
    hidden = keras.layers.BatchNormalization(name="norm")(hidden)
    hidden = keras.ops.add(hidden, 1.0)
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(hidden))


@keras.saving.register_keras_serializable("tests.copying")
class Blocks(keras.Model):
    """Layers in a list, whose names Keras has made up."""

    def __init__(self, depth, **kwargs):
        super().__init__(**kwargs)
        self.depth = depth
        self.inside = encoder(depth, name="inside")
        self.dropout = keras.layers.Dropout(0.5)  # whose seed is a variable
        self.norm = keras.layers.LayerNormalization(name="norm")

    def call(self, x, training=None):
        return self.norm(self.dropout(self.inside(x), training=training))


def values(model):
    return [np.array(one) for one in model.variables]


def test_layers_by_map_in_a_model_inside():
    student, teacher = nested(2), nested(4, seed=1)
    teacher.get_layer("norm").moving_mean.assign([1.0, 2.0, 3.0, 4.0])
    head = student.get_layer("head").get_weights()
    copied = kd.copy_weights(
        student,
        teacher,
        {
            "encoder/block_0": "encoder/block_1",
            "encoder/block_1": "encoder/block_3",
            "norm": "norm",
            "stem": "stem",
        },
    )
    for mine, theirs in ((0, 1), (1, 3)):
        for one, other in zip(
            student.get_layer("encoder").layers[mine].get_weights(),
            teacher.get_layer("encoder").layers[theirs].get_weights(),
            strict=True,
        ):
            np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(student.get_layer("norm").moving_mean, [1, 2, 3, 4])
    np.testing.assert_array_equal(student.get_layer("head").kernel, head[0])
    assert copied[0] == ("encoder/block_0/kernel", "encoder/block_1/kernel", (4, 4))
    assert len(copied) == 10
    assert copied.not_copied == ["head/kernel", "head/bias"]
    lines = str(copied).splitlines()
    assert lines[0].split() == ["student", "teacher", "shape"]
    assert lines[1].split(maxsplit=2) == list(map(str, copied[0]))
    assert lines[-1] == "as they were: head/kernel, head/bias"


def test_a_whole_model_inside_and_pairs_as_a_list():
    student, teacher = nested(2), nested(2, seed=1)
    copied = kd.copy_weights(student, teacher, [("encoder", "encoder")])
    for one, other in zip(
        student.get_layer("encoder").variables,
        teacher.get_layer("encoder").variables,
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    assert [row.student for row in copied] == [
        f"encoder/block_{i}/{name}" for i in range(2) for name in ("kernel", "bias")
    ]


def test_without_pairs_whatever_has_the_same_path_and_shapes():
    student, teacher = nested(2), nested(4, seed=1)
    copied = kd.copy_weights(student, teacher)
    assert copied.not_copied == []
    np.testing.assert_array_equal(
        student.get_layer("encoder").layers[1].kernel,
        teacher.get_layer("encoder").layers[1].kernel,
    )
    # A layer of another shape stays as it is, whole: its bias too.
    student = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(4, name="block_0"),
            keras.layers.Dense(4, name="block_1"),
        ]
    )
    copied = kd.copy_weights(student, encoder(2))
    assert copied.not_copied == ["block_0/kernel", "block_0/bias"]
    with pytest.raises(ValueError, match="no layer of the student has the path"):
        kd.copy_weights(
            keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)]), teacher
        )


def test_a_subclassed_model_of_layers_named_by_keras():
    class Own(keras.Model):
        def __init__(self, depth):
            super().__init__()
            self.blocks = [
                keras.Sequential(
                    [keras.layers.Dense(4), keras.layers.Dropout(0.5)], name=f"b{i}"
                )
                for i in range(depth)
            ]

        def call(self, x, training=None):
            for block in self.blocks:
                x = block(x, training=training)
            return x

    student, teacher = Own(1), Own(2)
    for one in (student, teacher):
        one(np.ones((1, 4), "float32"))
    inner = teacher.blocks[1].layers[0]
    inner.bias.assign([1.0, 2.0, 3.0, 4.0])
    assert inner.name != student.blocks[0].layers[0].name
    copied = kd.copy_weights(student, teacher, {"blocks.0": "b1"})
    np.testing.assert_array_equal(student.blocks[0].layers[0].bias, [1, 2, 3, 4])
    assert len(copied) == 2  # and no state of a seed
    before = [np.array(one) for one in teacher.variables]
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    np.testing.assert_allclose(student(x), teacher.blocks[1](x), rtol=1e-6)
    assert all(map(np.array_equal, before, values(teacher)))


def test_a_bert_takes_every_second_block_and_the_embeddings():
    def bert(layers):
        return keras_hub.models.BertTextClassifier(
            keras_hub.models.BertBackbone(
                vocabulary_size=11, num_layers=layers, num_heads=2, hidden_dim=4,
                intermediate_dim=8, max_sequence_length=6,
                name="backbone",
            ),
            num_classes=2, preprocessor=None,
        )  # fmt: skip

    student, teacher = bert(1), bert(2)
    parts = [
        "token_embedding",
        "position_embedding",
        "segment_embedding",
        "embeddings_layer_norm",
    ]
    copied = kd.copy_weights(
        student,
        teacher,
        {f"backbone/{name}": f"backbone/{name}" for name in parts}
        | {"backbone/transformer_layer_0": "backbone/transformer_layer_1"},
    )
    assert len(copied) == 5 + 16
    assert copied.not_copied == [
        "backbone/pooled_dense/kernel", "backbone/pooled_dense/bias",
        "logits/kernel", "logits/bias",
    ]  # fmt: skip
    x = np.random.default_rng(0).normal(size=(3, 6, 4)).astype("float32")
    np.testing.assert_allclose(
        student.backbone.get_layer("transformer_layer_0")(x),
        teacher.backbone.get_layer("transformer_layer_1")(x),
        rtol=1e-5,
        atol=1e-6,
    )


REFUSED = {
    "a shape": (
        {"encoder/block_0": "encoder/block_0"},
        r"the student's variable 'encoder/block_0/kernel' has the shape \(4, 8\), the "
        r"teacher's 'encoder/block_0/kernel' \(4, 4\)",
    ),
    "a structure": (
        {"norm": "head"},
        "'norm' and the teacher's 'head' differ in structure: it has gamma, beta, "
        "moving_mean, moving_variance and it has kernel, bias",
    ),
    "depth": ({"encoder": "encoder"}, "differ in structure: .* and 2 more"),
    "a call": ({"norm:0": "norm"}, "the student has no layer 'norm:0'"),
    "a path": (
        {"encoder/block_9": "encoder/block_0"},
        "the student has no layer 'encoder/block_9'; the closest are 'encoder/block_",
    ),
    "the teacher's path": ({"norm": "nrm"}, "the teacher has no layer 'nrm'.* 'norm'"),
    "an operation": ({"add": "norm"}, "the student's layer 'add' has no variables"),
    "no variables": ({"input_layer": "norm"}, "has no"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_nothing_is_changed_where_anything_is_refused(what):
    wrong, sentence = REFUSED[what]
    student, teacher = nested(2, width=8), nested(4, seed=1)
    before = values(student)
    # What could be copied comes first.
    with pytest.raises(ValueError, match=sentence):
        kd.copy_weights(student, teacher, {"stem": "stem"} | wrong)
    assert all(map(np.array_equal, before, values(student)))


def test_a_shared_layer_takes_one_value():
    shared = keras.layers.Dense(4, name="shared")
    inputs = keras.Input((4,))
    inner = keras.Sequential([keras.Input((4,)), shared], name="inner")
    student = keras.Model(inputs, shared(inner(shared(inputs))))
    teacher = encoder(2)
    with pytest.raises(
        ValueError, match="two values, of the teacher's 'block_0/kernel' and"
    ):
        kd.copy_weights(
            student, teacher, {"shared": "block_0", "inner/shared": "block_1"}
        )
    copied = kd.copy_weights(
        student, teacher, {"shared": "block_1", "inner/shared": "block_1"}
    )
    assert {row.teacher for row in copied} == {"block_1/kernel", "block_1/bias"}
    np.testing.assert_array_equal(shared.kernel, teacher.layers[1].kernel)


def test_other_dtypes_are_cast():
    student = encoder(1)
    keras.config.set_dtype_policy("float16")
    teacher = encoder(1)
    kd.copy_weights(student, teacher)
    assert student.layers[0].kernel.dtype == "float32"
    np.testing.assert_array_equal(
        np.array(student.layers[0].kernel),
        np.array(teacher.layers[0].kernel, "float32"),
    )
    student.layers[0].bias.assign([1e6, 0.0, 0.0, 0.0])
    with pytest.raises(
        ValueError, match="'block_0/bias' of float16 cannot hold the values"
    ):
        kd.copy_weights(teacher, student)


def test_quantized_layers_are_refused():
    teacher = encoder(2)
    teacher.layers[1].quantize("int8")
    with pytest.raises(ValueError, match="quantized layer"):
        kd.copy_weights(teacher, encoder(2), {"block_1": "block_1"})


@pytest.mark.slow
def test_the_optimizer_is_left_alone_and_training_goes_on(data):
    x, y = data[0][:, :4], data[1] % 3
    student, teacher = nested(2), nested(4, seed=1)
    student.compile("adam", SPARSE)
    student.fit(x, y, verbose=0)
    before = [np.array(one) for one in student.optimizer.variables]
    kd.copy_weights(student, teacher, {"encoder/block_0": "encoder/block_2"})
    assert all(map(np.array_equal, before, map(np.array, student.optimizer.variables)))
    student.fit(x, y, verbose=0)
    first = np.array(student.get_layer("encoder").layers[0].kernel)
    assert np.abs(first - teacher.get_layer("encoder").layers[2].kernel).max() > 0


def test_a_normalization_standardises_by_what_was_copied():
    def model():
        layers = [keras.layers.Normalization(name="standard")]
        return keras.Sequential([keras.Input((2,)), *layers])

    student, teacher = model(), model()
    teacher.layers[0].adapt(np.array([[1.0, 2.0], [3.0, 6.0]]))
    kd.copy_weights(student, teacher)
    np.testing.assert_allclose(student(np.ones((1, 2))), teacher(np.ones((1, 2))))
    np.testing.assert_allclose(student(np.ones((1, 2))), [[-1.0, -1.5]], atol=1e-5)


def test_a_copy_of_all_answers_as_the_teacher_does():
    student, teacher = Blocks(2), Blocks(2)
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    student(x), teacher(x)
    copied = kd.copy_weights(student, teacher)
    assert not copied.not_copied
    np.testing.assert_array_equal(student(x), teacher(x))
