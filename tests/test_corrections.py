"""The offsets and the temperature that fit validation data, against values by hand."""

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import keras_distill as kd


def of_logits(classes, **arguments):
    """Returns a model whose logits are its inputs."""
    return keras.Sequential([keras.Input((classes,)), same(classes, **arguments)])


def same(classes, **arguments):
    given = {"kernel_initializer": "identity", "use_bias": False, **arguments}
    return keras.layers.Dense(classes, **given)


def offsets(model):
    return model.get_layer("bias_correction").offsets


# Class 1 is right from an offset of 4, 1 and 1 on, class 0 wrong from 1.5 on.
Z = np.array([[4, 0], [3, 2], [1, 0], [1.5, 0], [2, 0]], "float32")
Y = np.array([1, 1, 1, 0, 0])


def noisy(classes=4, count=200, seed=0):
    """Returns logits that know little, with too low a bias for class 1; and labels."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, count)
    z = rng.normal(0, 2, (count, classes))
    z[np.arange(count), y] += 2
    z[:, 1] -= 3
    return z.astype("float32"), y


def errors(z, y, added=0.0):
    return int(((z + added).argmax(-1) != y).sum())


def nll(z, y):
    log_p = z - np.logaddexp.reduce(z, axis=-1, keepdims=True)
    return -log_p[np.arange(len(y)), y].mean()


@pytest.mark.parametrize("labels", [Y, Y[:, None], np.eye(2)[Y], Y.astype("float64")])
def test_one_offset_is_the_middle_of_the_best_interval(labels):
    corrected = kd.correct_bias(of_logits(2), (Z, labels), 1)
    assert offsets(corrected) == [0.0, pytest.approx(1.25)]  # margins 1 and 1.5
    answers = corrected.predict(Z, verbose=0)
    np.testing.assert_allclose(answers, Z + np.array([0.0, 1.25]))


def test_sample_weights_move_the_best_interval():
    weight = np.array([3.0, 1.0, 1.0, 1.0, 1.0])  # above 4 all of class 1 are right
    corrected = kd.correct_bias(of_logits(2), (Z, Y, weight), 1)
    # No end on that side: half a nat past the last margin, or where the NLL is least.
    assert offsets(corrected)[1] == pytest.approx(4.5)
    nothing = np.array([0.0, 1.0, 1.0, 1.0, 1.0])
    assert offsets(kd.correct_bias(of_logits(2), (Z, Y, nothing), 1))[1] == 1.25


def test_no_offset_of_a_fine_grid_has_fewer_errors():
    z, y = noisy()
    grid = [errors(z, y, [0, b, 0, 0]) for b in np.arange(-9, 15, 0.001)]
    found = offsets(kd.correct_bias(of_logits(4), (z, y), 1))
    assert errors(z, y, found) == min(grid) < errors(z, y)
    both = [errors(z, y, [b, b, 0, 0]) for b in np.arange(-9, 15, 0.001)]
    found = offsets(kd.correct_bias(of_logits(4), (z, y), [1, 0]))
    assert found == [found[1], found[1], 0.0, 0.0]
    assert errors(z, y, found) == min(both)


def test_separate_offsets_have_no_more_errors_than_one_or_than_those_of_least_nll():
    z, y = noisy()
    fit = kd.correct_bias
    one = offsets(fit(of_logits(4), (z, y), [1, 2]))
    likely = offsets(fit(of_logits(4), (z, y), [1, 2], shared=False, by="nll"))
    each = offsets(fit(of_logits(4), (z, y), [1, 2], shared=False))
    assert errors(z, y, each) <= min(errors(z, y, one), errors(z, y, likely))
    for c in (1, 2):  # no single one can be bettered
        for b in np.arange(-5, 8, 0.01):
            moved = [b if i == c else value for i, value in enumerate(each)]
            assert errors(z, y, moved) >= errors(z, y, each)


@pytest.mark.parametrize("classes", [[1], [0, 1], [0, 1, 2, 3]])
def test_at_the_least_nll_classes_are_as_frequent_as_the_model_says(classes):
    z, y = noisy()
    corrected = kd.correct_bias(
        of_logits(4), (z, y), classes, by="nll", shared=len(classes) == 1
    )
    p = tf.nn.softmax(z + np.float32(offsets(corrected))).numpy()
    for c in classes:
        assert p[:, c].mean() == pytest.approx((y == c).mean(), abs=1e-5)


def test_a_threshold_of_a_question():
    z = np.array([[-1.0], [-3.0], [-2.0], [-4.0]], "float32")
    y = np.array([1, 1, 0, 0])  # yes at -1 and -3, no at -2 and -4
    corrected = kd.correct_bias(of_logits(1), (z, y), 0)
    assert offsets(corrected)[0] in (1.5, 3.5)  # one error each: the likelier
    two = np.hstack([z, -z])
    labels = np.stack([y, y], -1)
    found = offsets(kd.correct_bias(of_logits(2), (two, labels), [0, 1], shared=False))
    alone = kd.correct_bias(of_logits(1), (-z, y), 0)
    assert found == [*offsets(corrected), *offsets(alone)]


@pytest.mark.parametrize("size", [1e-6, 1e8])
def test_logits_of_any_size(size):
    z, y = noisy()
    z *= np.float32(size)
    corrected = kd.correct_bias(of_logits(4), (z, y), 1)
    wanted = errors(z / size, y, [0, offsets(corrected)[1] / size, 0, 0])
    assert errors(corrected.predict(z, verbose=0), y) == wanted < errors(z, y)


def test_examples_in_which_a_class_is_masked_tell_nothing_of_its_offset():
    z, y = noisy()
    kept = offsets(kd.correct_bias(of_logits(4), (z, y), 1))
    wide = np.vstack([z, z])
    labels = np.concatenate([y, np.where(y == 1, 0, y)])
    for masked in (-1e9, -np.inf):
        wide[200:, 1] = masked
        found = offsets(kd.correct_bias(Given(), (wide, labels), 1, from_logits=True))
        assert found == kept


def test_masked_classes_are_no_part_of_a_temperature():
    z, y = noisy()
    wide = np.hstack([z, np.full((200, 1), -np.inf, "float32")])
    kept = temperature(kd.calibrate_temperature(of_logits(4), (z, y)))
    said = {"from_logits": True, "output_kinds": "softmax"}
    calibrated = kd.calibrate_temperature(Given(), (wide, y), **said)
    assert temperature(calibrated) == pytest.approx(kept)
    soft = np.eye(5)[y] * 0.9 + np.eye(5)[(y + 1) % 4] * 0.1
    shared = kd.calibrate_temperature(of_logits(4), (z, soft[:, :4]))
    calibrated = kd.calibrate_temperature(Given(), (wide, soft), **said)
    assert temperature(calibrated) == pytest.approx(temperature(shared))
    with pytest.raises(ValueError, match="right class is minus infinity for 1 of 200"):
        kd.calibrate_temperature(Given(), (wide, np.append(y[1:], 4)), **said)
    wide[y != 1, 1] = -np.inf  # so it is right wherever it can be
    with pytest.raises(ValueError, match="neither class 1 nor all others"):
        kd.correct_bias(Given(), (wide, y), 1, **said)


def temperature(model):
    return model.get_layer("temperature_scaling").temperature


def test_temperature_by_hand():
    z, y = np.tile([[4.0, 0.0]], (4, 1)), np.array([0, 0, 0, 1])
    # softmax([4, 0] / T) = [3/4, 1/4] at T = 4 / log 3.
    wanted = 4 / np.log(3)
    calibrate = kd.calibrate_temperature
    assert temperature(calibrate(of_logits(2), (z, y))) == pytest.approx(wanted)
    weighed = (z[2:], y[2:], np.array([3.0, 1.0]))
    assert temperature(calibrate(of_logits(2), weighed)) == pytest.approx(wanted)
    soft = (z[:1], np.array([[0.75, 0.25]]))
    assert temperature(calibrate(of_logits(2), soft)) == pytest.approx(wanted)
    yes = (z[:, :1], 1 - y)
    assert temperature(calibrate(of_logits(1), yes)) == pytest.approx(wanted)


def test_no_other_temperature_has_a_lower_nll():
    z, y = noisy(7)
    found = temperature(kd.calibrate_temperature(of_logits(7), (z, y)))
    least = nll(z / found, y)
    assert all(nll(z / (found * f), y) > least for f in (0.98, 0.999, 1.001, 1.02))


def test_a_model_of_probabilities_stays_one_and_is_corrected_exactly():
    rows = [[300, 0], [300, 299], [300, 298], [1, 0], [1.5, 0], [1.6, 0]]
    z, y = np.array(rows, "float32"), np.array([0, 1, 1, 1, 0, 0])
    model = of_logits(2, activation="softmax")  # p = 1, to a bit, of the first
    corrected = kd.correct_bias(model, (z, y), 1)
    assert offsets(corrected)[1] == pytest.approx(1.25)
    calibrated = kd.calibrate_temperature(corrected, (z, y))
    p = tf.nn.softmax((z + np.array([0, 1.25])) / temperature(calibrated)).numpy()
    np.testing.assert_allclose(
        calibrated.predict(z, verbose=0), p, rtol=1e-5, atol=1e-30
    )
    # It answers the last layer's question, so all else of the package knows what it is.
    judged = kd.evaluate(calibrated, (z, y), timing=False)
    assert (judged.kind, judged.accuracy) == ("softmax", pytest.approx(5 / 6))


@pytest.mark.slow
def test_it_is_saved_and_exported_and_shares_the_weights(tmp_path):
    x, y = noisy(3)
    inputs = {n: keras.Input((k,), name=n) for n, k in (("a", 1), ("b", 2))}
    dense = keras.layers.Dense(3, activation="softmax")
    model = keras.Model(
        inputs, dense(keras.layers.Concatenate()(list(inputs.values())))
    )
    dense.set_weights([np.eye(3), np.zeros(3)])
    data = tf.data.Dataset.from_tensor_slices(({"a": x[:, :1], "b": x[:, 1:]}, y))
    corrected = kd.correct_bias(model, data.batch(3), [1], shared=False)
    answers = corrected.predict({"a": x[:, :1], "b": x[:, 1:]}, verbose=0)
    assert errors(answers, y) < errors(x, y)
    corrected.save(tmp_path / "corrected.keras")
    loaded = keras.models.load_model(tmp_path / "corrected.keras")
    assert offsets(loaded) == offsets(corrected)
    again = loaded.predict({"a": x[:, :1], "b": x[:, 1:]}, verbose=0)
    np.testing.assert_array_equal(again, answers)
    path = kd.export_savedmodel(corrected, tmp_path / "served")
    served = kd.evaluate(path, data.batch(8), timing=False)
    assert served.accuracy == pytest.approx(1 - errors(answers, y) / len(y))
    dense.set_weights([np.zeros((3, 3)), np.zeros(3)])
    changed = corrected.predict({"a": x[:, :1], "b": x[:, 1:]}, verbose=0)
    assert np.ptp(changed, axis=0).max() == 0


def test_kinds_of_logits_are_known_after_loading(tmp_path):
    z, y = noisy(3)
    kd.correct_bias(of_logits(3), (z, np.eye(3)[y]), 1, output_kinds="sigmoid").save(
        tmp_path / "m.keras"
    )
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert kd.evaluate(loaded, (z, np.eye(3)[y]), timing=False).kind == "sigmoid"


class Given(keras.Model):
    def call(self, inputs):
        return inputs


class Difference(keras.Model):
    def call(self, inputs):
        return inputs["a"] - inputs["b"]


def test_a_subclassed_model_of_named_inputs_is_corrected_twice():
    x = {"a": Z.astype("float64"), "b": np.zeros_like(Z, "float64")}
    model = Difference()
    for _ in range(2):
        corrected = kd.correct_bias(model, (x, Y), 1, from_logits=True)
        assert offsets(corrected)[1] == 1.25
        assert {k: v.dtype for k, v in corrected.input.items()} == dict.fromkeys(
            "ab", "float32"
        )
        assert corrected.input["a"].name == "a"


def test_the_warning_names_the_argument():
    with pytest.warns(
        UserWarning, match="layers of the model .* Pass from_logits=False"
    ):
        kd.correct_bias(Subclassed(), (Z, Y), 1)


class Subclassed(keras.Model):
    def call(self, inputs):
        return keras.ops.softmax(inputs)


@pytest.mark.filterwarnings("ignore:the layers of the model do not say")
def test_other_models_and_data():
    table = pd.DataFrame(Z, columns=["a", "b"]), pd.Series(Y)
    for model in (Subclassed(), of_logits(2, dtype="mixed_float16")):
        corrected = kd.correct_bias(model, table, 1)
        assert offsets(corrected)[1] == pytest.approx(1.25, abs=1e-6)
        assert corrected.predict(Z, verbose=0).dtype == "float32"
    unbuilt = kd.correct_bias(keras.Sequential([same(2)]), (Z, Y), 1)
    assert unbuilt.output_shape == (None, 2)
    exact = kd.correct_bias(of_logits(2, dtype="float64"), (Z.astype("float64"), Y), 1)
    assert exact.output.dtype == "float64"


def test_positions_are_examples_and_what_is_masked_is_none():
    z, y = noisy(3, 60)
    maps = z.reshape(10, 6, 3), y.reshape(10, 6)
    spatial = keras.Sequential([keras.Input((6, 3)), same(3)])
    flat = offsets(kd.correct_bias(of_logits(3), (z, y), 1))
    assert offsets(kd.correct_bias(spatial, maps, 1)) == flat
    masked = np.where(np.arange(6) < 3, maps[0].transpose(2, 0, 1), 0).transpose(
        1, 2, 0
    )
    inputs = keras.Input((6, 3))
    masking = keras.Model(inputs, same(3)(keras.layers.Masking()(inputs)))
    half = (maps[0][:, :3].reshape(-1, 3), maps[1][:, :3].ravel())
    found = offsets(kd.correct_bias(masking, (masked, maps[1]), 1))
    assert found == offsets(kd.correct_bias(of_logits(3), half, 1))
