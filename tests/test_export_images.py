"""Images served by the bytes of their files."""

import concurrent.futures
import io

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_distill as kd
from keras_distill.export import check
from tests.forking import answer_here

SIZE = (6, 5)
RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (13, 17, 3), dtype="uint8")


@pytest.fixture(autouse=True)
def _answers_here(request, monkeypatch):
    if request.node.get_closest_marker("fresh_process") is None:
        monkeypatch.setattr(check, "ask_fresh_process", answer_here)


def encoded(array, form="PNG", mode=None, **given):
    file = io.BytesIO()
    Image.fromarray(array, mode).save(file, form, **given)
    return file.getvalue()


def pixels(*shape, dtype=None):
    """Returns a model whose values are the pixels that it is given."""
    return keras.Sequential(
        [keras.Input(shape, name="photo", dtype=dtype), keras.layers.Flatten()]
    )


def export(folder, model=None, **given):
    given = {"output_kinds": "values", "serving_bytes": True, **given}
    path = kd.export_savedmodel(
        pixels(*SIZE, 3) if model is None else model, folder, verbose=False, **given
    )
    return tf.saved_model.load(path).signatures["serving_default"]


def ask(serve, *files, shape=(*SIZE, 3), name="image_bytes"):
    values = serve(**{name: tf.constant(files, tf.string)})["values"].numpy()
    return values.reshape(len(files), *shape)


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "ask_fresh_process", answer_here)
        return export(tmp_path_factory.mktemp("bytes"))


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"interpolation": "bicubic"},
        {"interpolation": "nearest"},
        {"crop_to_aspect_ratio": True},
        {"pad_to_aspect_ratio": True, "interpolation": "area"},
        {"color_mode": "grayscale"},
        {"color_mode": "rgba"},
    ],
)
def test_pixels_are_those_of_image_dataset_from_directory(tmp_path, options):
    """Bit by bit, for what a Keras user trained on."""
    channels = {"grayscale": 1, "rgba": 4}.get(options.get("color_mode"), 3)
    files = [encoded(PHOTO), encoded(PHOTO[:4, :3]), encoded(PHOTO[:, :6])]
    for number, file in enumerate(files):
        (tmp_path / f"{number}.png").write_bytes(file)
    read = keras.utils.image_dataset_from_directory(
        tmp_path,
        labels=None,
        image_size=SIZE,
        batch_size=None,
        shuffle=False,
        verbose=False,
        **options,
    )
    shape = (*SIZE, channels)
    serve = export(tmp_path / "m", pixels(*shape), serving_bytes=options)
    np.testing.assert_array_equal(ask(serve, *files, shape=shape), [*read])


def test_what_is_scaled_and_in_which_order(tmp_path):
    """image * scale + offset, then preprocess, then the model."""
    given = {"image_size": SIZE, "scale": [1 / 255, 2, 1], "offset": [0, -1, 0.5]}
    serve = export(
        tmp_path, serving_bytes=given, preprocess=lambda image: image[..., ::-1] * 10
    )
    photo = PHOTO[:6, :5]
    expected = (photo * np.float32(given["scale"]) + np.float32(given["offset"])) * 10
    found = ask(serve, encoded(photo))[0]
    np.testing.assert_allclose(found, expected[..., ::-1], rtol=1e-6)


def test_files_of_all_kinds(serve):
    photo = PHOTO[:6, :5]
    gray, alpha = photo[..., :1], np.concatenate([photo, photo[..., :1]], -1)
    deep = RNG.integers(0, 65536, (*SIZE, 1), dtype="uint16")
    frames = [Image.fromarray(np.full((6, 5, 3), n, "uint8")) for n in (10, 20)]
    moving = io.BytesIO()
    frames[0].save(moving, "GIF", save_all=True, append_images=frames[1:])
    jpeg = encoded(photo, "JPEG", quality=100)
    files = {
        encoded(gray[..., 0]): gray.repeat(3, -1),
        encoded(np.concatenate([gray, gray], -1), mode="LA"): gray.repeat(3, -1),
        encoded(alpha): photo,
        tf.io.encode_png(deep).numpy(): (deep >> 8).repeat(3, -1),
        moving.getvalue(): np.full((6, 5, 3), 10),
        encoded(photo, "BMP"): photo,
        encoded(photo, "WEBP", lossless=True): photo,
        jpeg: tf.io.decode_jpeg(jpeg).numpy(),
    }
    np.testing.assert_array_equal(ask(serve, *files), [*files.values()])


GOOD = encoded(PHOTO)
JPEG = encoded(PHOTO, "JPEG")
FLIPPED = bytes(255 - byte if i == 300 else byte for i, byte in enumerate(GOOD))


@pytest.mark.parametrize(
    ("batch", "bad", "count"),
    [
        ([b"", GOOD], "0", 2),
        ([GOOD, GOOD, b"no image"], "2", 3),
        ([GOOD[:200], GOOD, JPEG[:300]], "0 2", 3),
        ([FLIPPED], "0", 1),
        ([GOOD, GOOD[:8]], "1", 2),
        ([b"\x89PNG\r\n\x1a\n" + b"\0" * 99], "0", 1),
    ],
)
def test_a_corrupt_image_fails_its_request_alone_and_is_named(serve, batch, bad, count):
    before = ask(serve, GOOD, JPEG)
    message = rf"image_bytes\[{bad}\] cannot be decoded as an image of 3 .* of {count};"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        ask(serve, *batch)
    np.testing.assert_array_equal(ask(serve, GOOD, JPEG), before)


def test_a_batch_of_none_and_of_many(serve):
    assert ask(serve).shape == (0, *SIZE, 3)
    files = [encoded(np.full((n % 7 + 1, 3, 3), n, "uint8")) for n in range(100)]
    assert ask(serve, *files)[:, 0, 0, 0].tolist() == list(range(100))


def test_requests_at_the_same_time_do_not_fail_with_a_corrupt_one(serve):
    expected = ask(serve, GOOD, JPEG)

    def request(number):
        if number % 3:
            np.testing.assert_array_equal(ask(serve, GOOD, JPEG), expected)
            return False
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"image_bytes\[1\]"):
            ask(serve, JPEG, b"", GOOD)
        return True

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(request, range(60))) == 20


@pytest.mark.slow
@pytest.mark.fresh_process
def test_tensorflow_alone_decodes_them(tmp_path):
    serve = export(tmp_path, warmup=[[GOOD], [JPEG, GOOD]], keep=1)
    expected = tf.image.resize(PHOTO, SIZE)
    np.testing.assert_array_equal(ask(serve, GOOD)[0], expected)


def test_a_fixed_batch_of_whole_numbers(tmp_path):
    spec = tf.TensorSpec([1, None, None, 3], tf.uint8, "photo")
    serve = export(
        tmp_path,
        pixels(*SIZE, 3, dtype="uint8"),
        input_signature=spec,
        serving_bytes=SIZE,
    )
    assert serve.structured_input_signature[1]["image_bytes"].shape == (1,)
    expected = np.round(tf.image.resize(PHOTO, SIZE))
    np.testing.assert_array_equal(ask(serve, GOOD)[0], expected)


def test_a_subclassed_model_whose_preprocess_takes_larger_images(tmp_path):
    class Mean(keras.Model):
        def call(self, image):
            assert image.shape[1:] == (3, 2, 1)
            return keras.ops.mean(image, [1, 2])

    serve = export(
        tmp_path,
        Mean(),
        serving_bytes={"scale": 0.5},
        preprocess=lambda image: tf.image.resize(image, (3, 2)),
        input_signature=tf.TensorSpec([None, 4, 4, 1]),
    )
    gray = np.full((9, 9), 40, "uint8")
    assert ask(serve, encoded(gray), shape=(1,)) == 20


def pair(*shapes):
    a, b = (keras.Input(s, name=n) for n, s in zip("ab", shapes, strict=True))
    means = [keras.layers.Flatten()(one)[:, :1] for one in (a, b)]
    return keras.Model([a, b], keras.layers.Concatenate()(means))


def test_several_inputs_of_which_one_is_an_image(tmp_path):
    serve = export(tmp_path, pair((*SIZE, 3), (2,)))
    found = serve(image_bytes=tf.constant([GOOD]), b=tf.constant([[7.0, 8.0]]))
    first = tf.image.resize(PHOTO, SIZE)[0, 0, 0]
    np.testing.assert_allclose(found["values"], [[first, 7.0]])


def test_several_images_have_the_names_of_their_inputs(tmp_path):
    dark, light = (encoded(np.full((2, 2, 3), n, "uint8")) for n in (3, 200))
    signature = [
        tf.TensorSpec([None, *SIZE, 3], name=name) for name in ("left", "right")
    ]
    serve = export(
        tmp_path,
        pair((*SIZE, 3), (*SIZE, 3)),
        input_signature=signature,
        preprocess=lambda raw: [raw[0] + 1, raw[1]],
        example=[[dark], [light]],
    )
    found = serve(left_bytes=tf.constant([dark]), right_bytes=tf.constant([light]))
    assert found["values"].numpy().tolist() == [[4, 200]]
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"right_bytes\[0\] cannot"
    ):
        serve(left_bytes=tf.constant([dark]), right_bytes=tf.constant([b"x"]))


@pytest.mark.parametrize(
    ("shape", "given", "message"),
    [
        ((6, 5, 3), {"example": [GOOD, b""]}, r"example: image_bytes\[1\] cannot"),
        ((6, 5, 3), {"example": np.zeros((1, 6, 5, 3))}, "batch of string"),
        ((4,), {}, "serving_bytes needs an input of images .*got 'photo' .None, 4.;"),
        ((3, 6, 5), {}, "needs an input of images .* and make what the model takes"),
        ((None, None, 3), {}, "takes images of any size, .*serving_bytes=.height"),
        (
            (6, 5, 3),
            {"serving_bytes": (6, 6)},
            r"image_size \(6, 6\), but 'photo' takes",
        ),
        (
            (6, 5, 3),
            {"serving_bytes": {"color_mode": "grayscale"}},
            "color_mode 'grayscale', but 'photo' takes 3 channel",
        ),
        (
            (6, 5, 1),
            {"serving_bytes": {"scale": [1, 2, 3]}},
            r"serving_bytes\['scale'\] has 3 numbers, but the images have 1 channel",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused(tmp_path, shape, given, message):
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "m", pixels(*shape), **given)
    assert not (tmp_path / "m").exists()


def test_another_input_may_have_the_name_of_the_bytes(tmp_path):
    signature = {
        "photo": tf.TensorSpec([None, *SIZE, 3]),
        "image_bytes": tf.TensorSpec([None, 2]),
    }
    with pytest.raises(ValueError, match="is the name of another input too"):
        export(
            tmp_path,
            pair((*SIZE, 3), (2,)),
            input_signature=signature,
            preprocess=lambda raw: [raw["photo"], raw["image_bytes"]],
        )
