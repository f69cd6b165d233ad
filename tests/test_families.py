"""Model families as they come, from keras.applications and KerasHub, through all that we do.

Without weights, at 64 pixels, unmodified: soft targets live and cached, two features by path,
export, specialists.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd

CLASSES, SIZE, LENGTH, WORDS = 4, 64, 8, 50
applications = keras.applications


def application(name, **arguments):
    """A classifier of keras.applications, which ends in a softmax."""
    return lambda: getattr(applications, name)(
        weights=None, classes=CLASSES, input_shape=(SIZE, SIZE, 3), **arguments
    )


def transfer(name, preprocess, **arguments):
    """The form of the guides: augmentation, preprocessing, a frozen base, a head."""

    def build():
        base = getattr(applications, name)(
            weights=None, include_top=False, input_shape=(SIZE, SIZE, 3), **arguments
        )
        base.trainable = False
        inputs = keras.Input((SIZE, SIZE, 3))
        x = layers.RandomRotation(0.1)(layers.RandomFlip("horizontal")(inputs))
        x = base(preprocess(x * 255.0), training=False)
        x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
        return keras.Model(inputs, layers.Dense(CLASSES)(x))

    return build


def hub(task, backbone, activation=None, **arguments):
    """A KerasHub classifier, without a preprocessor."""

    def build():
        hub = pytest.importorskip("keras_hub").models
        made = getattr(hub, backbone)(**arguments)
        return getattr(hub, task)(
            made, num_classes=CLASSES, preprocessor=None, activation=activation
        )

    return build


TRANSFORMER = {
    "vocabulary_size": WORDS, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16,
    "max_sequence_length": LENGTH,
}  # fmt: skip
IMAGE = (SIZE, SIZE, 3)


def resnet(name, filters, activation=None):
    return hub(
        "ResNetImageClassifier", "ResNetBackbone", activation, name=name,
        input_conv_filters=[64], input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, filters, 2 * filters],
        stackwise_num_blocks=[1, 1, 1], stackwise_num_strides=[1, 2, 2],
        block_type="basic_block", use_pre_activation=True, image_shape=IMAGE,
    )  # fmt: skip


def vit(width, blocks):
    return hub(
        "ViTImageClassifier", "ViTBackbone", image_shape=IMAGE, patch_size=(16, 16),
        num_layers=blocks, num_heads=2, hidden_dim=width, mlp_dim=2 * width,
    )  # fmt: skip


# Teacher, student, and two features by path where the names are the families' own.
PAIRS = {
    "ResNet50, MobileNetV3Small": (
        application("ResNet50"),
        application("MobileNetV3Small"),
    ),
    "EfficientNetV2B0, MobileNetV2": (
        application("EfficientNetV2B0"),
        application("MobileNetV2", alpha=0.35),
    ),
    "DenseNet121, MobileNet": (
        application("DenseNet121"),
        application("MobileNet", alpha=0.25),
    ),
    "VGG16, EfficientNetB0": (
        application("VGG16", classifier_activation=None),
        application("EfficientNetB0"),
    ),
    "ConvNeXtTiny, MobileNetV3Large": (
        application("ConvNeXtTiny"),
        application("MobileNetV3Large", alpha=0.75),
    ),
    "NASNetMobile, MobileNetV2": (
        application("NASNetMobile"),
        application("MobileNetV2", alpha=0.35, classifier_activation=None),
    ),
    "transfer: EfficientNetB0, MobileNetV3Small": (
        transfer("EfficientNetB0", applications.efficientnet.preprocess_input),
        transfer("MobileNetV3Small", applications.mobilenet_v3.preprocess_input),
    ),
    "transfer: ResNet50V2, MobileNetV2": (
        transfer("ResNet50V2", applications.resnet_v2.preprocess_input),
        transfer("MobileNetV2", applications.mobilenet_v2.preprocess_input, alpha=0.35),
    ),
    "hub: ResNet, ResNet": (resnet("big", 16), resnet("small", 8, "softmax")),
    "hub: ViT, ViT": (vit(16, 4), vit(8, 2)),
    "hub: ViT, MobileNetV3Small": (vit(64, 8), application("MobileNetV3Small", alpha=0.35, minimalistic=True)),
    "hub: Bert, Bert": (
        hub("BertTextClassifier", "BertBackbone", num_layers=4, **TRANSFORMER),
        hub("BertTextClassifier", "BertBackbone", num_layers=2, **TRANSFORMER),
    ),
    "hub: Roberta, DistilBert": (
        hub("RobertaTextClassifier", "RobertaBackbone", num_layers=3, **TRANSFORMER),
        hub("DistilBertTextClassifier", "DistilBertBackbone", num_layers=2, **TRANSFORMER),
    ),
    "hub: Albert, FNet": (
        hub("AlbertTextClassifier", "AlbertBackbone", num_layers=2, embedding_dim=8,
            **TRANSFORMER),
        hub("FNetTextClassifier", "FNetBackbone", num_layers=2, **{
            key: value for key, value in TRANSFORMER.items() if key != "num_heads"}),
    ),
}  # fmt: skip


def data_for(*models):
    """Returns inputs for all of the models, and labels."""
    rng = np.random.default_rng(0)
    y = np.arange(8) % CLASSES
    names = {one.name for model in models for one in model.inputs}
    if not names & {"token_ids", "padding_mask"}:
        return rng.uniform(size=(8, *IMAGE)).astype("float32"), y
    tokens = {
        "token_ids": rng.integers(1, WORDS, (8, LENGTH)),
        "padding_mask": np.arange(LENGTH) < rng.integers(3, LENGTH + 1, (8, 1)),
        "segment_ids": np.zeros((8, LENGTH), int),
    }
    return {name: tokens[name] for name in sorted(names)}, y


def trained(student, teacher, x, y, **arguments):
    distiller = kd.Distiller(student, teacher, **arguments)
    from_logits = bool(distiller.student_from_logits)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    distiller.compile(keras.optimizers.Adam(1e-4), loss)
    before = [variable.numpy() for variable in student.trainable_variables]
    arrays = (x,) if isinstance(x, tf.data.Dataset) else (x, y)
    history = distiller.fit(*arrays, batch_size=None if y is None else 4, verbose=0)
    assert all(np.isfinite(values).all() for values in history.history.values())
    moved = [
        np.abs(old - new.numpy()).max() > 0
        for old, new in zip(before, student.trainable_variables, strict=True)
    ]
    assert np.mean(moved) > 0.5
    return distiller, history.history


@pytest.fixture(autouse=True)
def forgotten():
    yield
    keras.utils.clear_session()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "hub: Bert, Bert" else pytest.mark.slow) for name in PAIRS],
)  # fmt: skip
def test_a_family(name, tmp_path):
    keras.utils.set_random_seed(0)
    teacher, student = (build() for build in PAIRS[name])
    x, y = data_for(teacher, student)
    start, of_teacher = student.get_weights(), teacher.get_weights()

    distiller, live = trained(student, teacher, x, y)
    assert distiller.output_kinds == "softmax"

    student.set_weights(start)
    pairs = kd.suggest_feature_pairs(student, teacher)
    # A CNN and a Transformer have few places in common.
    assert len(pairs) >= (1 if name == "hub: ViT, MobileNetV3Small" else 2)
    loss = kd.SoftTargetLoss() + sum(
        0.1 * kd.FeatureLoss(*pair, adapter="auto") for pair in pairs[-2:]
    )
    distiller, matched = trained(student, teacher, x, y, distillation_loss=loss)
    assert matched["soft_loss"][0] > live["soft_loss"][0]

    student.set_weights(start)
    examples = tf.data.Dataset.from_tensor_slices((x, y))
    names = [of_teacher for _, of_teacher in pairs[-2:]]
    targets = kd.SoftTargets.write(
        tmp_path / "targets", teacher, examples.batch(4), layers=names, verbose=False
    )
    _, cached = trained(
        student, None, targets.join(examples).batch(4), None, distillation_loss=loss
    )
    assert np.isfinite(cached["soft_loss"][0])

    for before, after in zip(of_teacher, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    kd.export_savedmodel(student, tmp_path / "served", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served" / "1"))
    assert served.signatures

    builder = kd.SpecialistBuilder(student, [[0, 1], [2, 3]])
    ensemble = builder.fit(
        examples, hard_epochs=1, soft_epochs=1, batch_size=4, verbose=False
    )
    asked = x if isinstance(x, dict) else x[:2]
    asked = {key: part[:2] for key, part in x.items()} if isinstance(x, dict) else asked
    assert tuple(ensemble(asked).shape) == (2, CLASSES)
