"""Teacher and student take different parts of one dict of inputs: by name, never by place."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill.inputs import inputs_for

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
# "audio" sorts before "image", and "text" after it.
X = {
    name: np.random.default_rng(n).normal(size=(24, 3)).astype("float32")
    for n, name in enumerate(("audio", "image", "text"))
}
Y = np.arange(24) % 4


def of(*names, structure="list", width=4):
    """Returns a model of some of the inputs, which it takes in one structure."""
    if structure == "sequential":
        return keras.Sequential(
            [keras.Input((3,), name=names[0]), keras.layers.Dense(4)]
        )
    inputs = {name: keras.Input((3,), name=name) for name in names}
    parts = list(inputs.values())
    h = keras.layers.Concatenate()(parts) if len(parts) > 1 else parts[0]
    outputs = keras.layers.Dense(4)(keras.layers.Dense(width, name="hidden")(h))
    taken = {"list": parts, "dict": inputs, "single": parts[0]}[structure]
    return keras.Model(taken, outputs)


def on_image(student):
    """Returns what the student answers for the image, given as the layers take it."""
    h = X["image"]
    for layer in student.layers:
        if layer.weights:
            h = h @ layer.kernel.numpy() + layer.bias.numpy()
    return h


STRUCTURES = ["single", "list", "dict", "sequential"]


@pytest.mark.sampled(1)
@pytest.mark.filterwarnings("error:The structure of")
@pytest.mark.parametrize("structure", ["dict", "sequential"])
def test_an_image_only_student_of_a_teacher_of_all_modalities(structure, tmp_path):
    teacher = of("text", "image", "audio", structure="dict", width=16)
    student = of("image", structure=structure)
    distiller = kd.Distiller(student, teacher)
    distiller.compile("sgd", LOSS)
    distiller.fit(X, Y, validation_data=(X, Y), verbose=0)
    expected = on_image(student)
    near = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(distiller.predict(X, verbose=0), expected, **near)
    loss = float(LOSS(Y, expected))
    assert distiller.evaluate(X, Y, verbose=0) == pytest.approx(loss, rel=1e-5)
    judged = kd.evaluate(distiller, (X, Y), teacher=teacher, timing=False)
    assert judged.nll == pytest.approx(loss, rel=1e-5)
    targets = kd.SoftTargets.write(tmp_path, teacher, (X, Y), verbose=False)
    cached = kd.Distiller(student, alpha=0.0)
    cached.compile("sgd", LOSS)
    cached.fit(targets.join((X, Y)).batch(8), verbose=0)
    np.testing.assert_allclose(cached.predict(X, verbose=0), on_image(student), **near)


@pytest.mark.slow
@pytest.mark.filterwarnings("error:The structure of")
def test_an_image_only_teacher_of_a_student_of_all_modalities(tmp_path):
    teacher = of("image", structure="dict", width=16)
    student = of("text", "image", "audio", structure="dict")
    noise = {**X, "audio": np.full((24, 3), np.inf, "float32")}
    targets = kd.SoftTargets.write(
        tmp_path, teacher, noise, dtype="float32", verbose=False
    )
    found = np.concatenate([block.numpy() for block in targets.logits()])
    np.testing.assert_allclose(found, on_image(teacher), rtol=1e-5, atol=1e-5)
    covariance = kd.class_covariance(teacher, X, verbose=False)
    alone = kd.class_covariance(teacher, {"image": X["image"]}, verbose=False)
    np.testing.assert_allclose(covariance, alone)
    # NaN in what the teacher does not take is not its fault.
    missing = {**X, "text": np.full((24, 3), np.nan, "float32")}
    distiller = kd.Distiller(of("image"), teacher, alpha=0.0)
    distiller.compile("sgd", LOSS)
    distiller.fit(missing, Y, verbose=0)
    both = kd.Distiller(student, [teacher, of("audio", structure="single")])
    both.compile("sgd", LOSS)
    both.fit(tf.data.Dataset.from_tensor_slices((X, Y)).batch(8), verbose=0)


def test_matched_features_are_of_the_inputs_by_name():
    teacher = of("image", structure="dict", width=4)
    student = of("image", "audio", structure="dict")
    loss = kd.FeatureLoss("hidden", "hidden")
    distiller = kd.Distiller(student, teacher, distillation_loss=loss, alpha=0.0)
    distiller.compile(keras.optimizers.SGD(0.0), LOSS)
    logs = distiller.fit(X, Y, batch_size=24, verbose=0).history
    theirs, ours = (
        h @ model.get_layer("hidden").kernel.numpy()
        for h, model in (
            (X["image"], teacher),
            (np.concatenate([X["image"], X["audio"]], -1), student),
        )
    )
    assert logs["soft_loss"][0] == pytest.approx(
        np.mean((theirs - ours) ** 2), rel=1e-4
    )


@pytest.mark.parametrize("structure", ["single", "dict"])
def test_an_input_that_the_data_lacks_is_refused(structure):
    student = of("picture", structure=structure)
    before = student.get_weights()
    distiller = kd.Distiller(student, of("image"))
    distiller.compile("sgd", LOSS)
    sentence = (
        "student .* takes the inputs 'picture', but the data has 'audio', 'image'"
    )
    with pytest.raises(ValueError, match=sentence):
        distiller.fit(X, Y, verbose=0)
    for kept, now in zip(before, student.get_weights(), strict=True):
        np.testing.assert_array_equal(kept, now)
    with pytest.raises(ValueError, match=sentence):
        distiller.predict(X, verbose=0)
    with pytest.raises(ValueError, match="teacher .* takes the inputs 'picture'"):
        kd.evaluate(student, (X, Y), timing=False)


@pytest.mark.filterwarnings("error:The structure of")
@pytest.mark.parametrize("structure", STRUCTURES)
def test_each_structure_is_given_what_it_takes_by_name(structure):
    model = of("image", structure=structure)
    found = model(inputs_for(model, X))
    np.testing.assert_allclose(found, on_image(model), rtol=1e-5, atol=1e-5)
    with pytest.raises(
        ValueError, match="takes the inputs 'image', but the data has 'a'"
    ):
        inputs_for(model, {"a": X["image"]})


def test_a_model_that_says_no_inputs_is_given_all():
    assert inputs_for(lambda x: x, X) is X
    assert inputs_for(of("image"), X["image"]) is X["image"]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_list_has_as_many_inputs_as_the_model(structure):
    model = of("image", structure=structure)
    assert inputs_for(model, [X["image"]]) is not None
    with pytest.raises(
        ValueError, match=r"takes 1 input\(s\), .* is a list of 2; give one"
    ):
        inputs_for(model, [X["image"], X["text"]])
    with pytest.raises(
        ValueError, match=r"takes 2 .* a tuple of 1; give one array for each"
    ):
        inputs_for(of("image", "text"), (X["image"],))
