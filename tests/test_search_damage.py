"""What is left of a search whose files are gone, cut, empty or changed."""

import shutil

import keras
import keras_tuner
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.run_directory import RunDirectory
from keras_distill.tuning.trials import _best_epoch

from .conftest import mlp
from .test_search import (  # noqa: F401 - fixtures
    VALIDATION,
    an_oracle,
    search,
    targets,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, search):  # noqa: F811
    """A search of four trials, of which each test takes a copy."""
    folder = tmp_path_factory.mktemp("whole") / "s"
    return folder, search(folder, max_trials=4, epochs=1)


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "s")
    return tmp_path / "s"


def empty(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def changed(path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(bytes(content))


def gone(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def another_s(path):
    trial = {"0": "1", "1": "2", "2": "3", "3": "0"}[path.parent.name[-1]]
    shutil.copy(path.parent.parent / f"trial_{trial}" / path.name, path)


WEIGHTS, TRIAL = "student.weights.h5", "trial.json"
DAMAGES = [
    (["trial_0"], gone),
    (["trial_2"], gone),
    (["trial_3"], gone),
    (["trial_0", "trial_1", "trial_2", "trial_3"], gone),
    ([f"trial_1/{TRIAL}"], gone),
    ([f"trial_1/{TRIAL}"], empty),
    ([f"trial_2/{TRIAL}"], cut),
    ([f"trial_2/{TRIAL}"], changed),
    ([f"trial_2/{TRIAL}"], another_s),
    ([f"trial_1/{WEIGHTS}"], gone),
    ([f"trial_1/{WEIGHTS}"], empty),
    ([f"trial_1/{WEIGHTS}"], cut),
    ([f"trial_3/{WEIGHTS}"], changed),
    ([f"trial_3/{WEIGHTS}"], another_s),
]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("names", "damage"), DAMAGES, ids=[f"{d.__name__}-{n[-1]}" for n, d in DAMAGES]
)
def test_what_is_damaged_is_run_again_and_nothing_else(
    whole,
    copy,
    search,  # noqa: F811
    names,
    damage,
):
    lost = sorted({name.split("/")[0][-1] for name in names})
    times = {path: path.stat().st_mtime_ns for path in copy.glob(f"trials/*/{WEIGHTS}")}
    for name in names:
        damage(copy / "trials" / name)
    with pytest.warns(UserWarning, match=f"of the trials {', '.join(lost)} is gone"):
        result = search(copy, max_trials=4, epochs=1, resume=True)
    assert list(result.trials.index) == [0, 1, 2, 3]
    assert (result.trials["status"] == "COMPLETED").all()
    assert [list(p) for p in result.trials[["temperature", "alpha"]].to_numpy()[:2]] == [
        [4.0, 1.0], [4.0, 0.1],
    ]  # fmt: skip
    for path, time in times.items():
        again = path.parent.name[-1] in lost
        assert (path.stat().st_mtime_ns != time) == again
    kept = [i for i in range(4) if str(i) not in lost or i < 2]
    np.testing.assert_allclose(
        result.trials["val_nll"][kept], whole[1].trials["val_nll"][kept], rtol=1e-4
    )
    judged = kd.evaluate(result.student, VALIDATION, timing=False)
    assert judged.accuracy == pytest.approx(result.score, rel=1e-5)


@pytest.mark.slow
@pytest.mark.sampled(1)
@pytest.mark.parametrize("damage", [gone, empty, cut, changed])
def test_without_the_oracle_s_file_the_trials_tell_enough(
    whole,
    copy,
    search,  # noqa: F811
    damage,
):
    damage(copy / "trials" / "oracle.json")
    result = search(copy, max_trials=5, epochs=1, resume=True)
    assert len(result.trials) == 5
    np.testing.assert_array_equal(
        result.trials["val_nll"][:4], whole[1].trials["val_nll"]
    )


@pytest.mark.parametrize("damage", [empty, cut, changed])
def test_damaged_settings_are_named(copy, search, damage):  # noqa: F811
    damage(copy / "search.json")
    with pytest.raises(ValueError, match=r"search.json is damaged; delete"):
        search(copy, max_trials=4, epochs=1, resume=True)


def test_nothing_but_rubbish_among_the_trials(copy, search):  # noqa: F811
    (copy / "trials" / "trial_copy").mkdir()
    (copy / "trials" / "trial_1 (2)").mkdir()
    (copy / "trials" / "notes.txt").write_text("mine")
    assert len(search(copy, max_trials=4, epochs=1, resume=True).trials) == 4


@pytest.mark.parametrize("damage", [gone, empty, cut, changed])
def test_a_best_student_that_is_gone_later_is_named(copy, search, damage):  # noqa: F811
    result = search(copy, max_trials=4, epochs=1, resume=True)
    damage(copy / "trials" / f"trial_{result.best_trial}" / WEIGHTS)
    with pytest.raises(OSError, match=r"is gone or damaged: .*resume=True"):
        result.student  # noqa: B018


def test_a_search_of_an_earlier_version_has_no_digests(copy, search):  # noqa: F811
    for folder in copy.glob("trials/trial_*"):
        run = RunDirectory(str(folder), "the search")
        content = run.read_json(TRIAL)
        del content["student"]
        run.write_json(TRIAL, content)
    result = search(copy, max_trials=4, epochs=1, resume=True)
    assert result.student.built


# Scores that are not finite ---------------------------------------------------------

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("direction", "scores", "epoch"),
    [
        ("max", [0.1, 0.3, 0.2], 1), ("min", [0.3, 0.1, 0.2], 1),
        ("max", [NAN, 0.3], 1), ("min", [INF, 0.3, NAN], 1), ("max", [-INF, 0.1], 1),
        ("max", [NAN, NAN], None), ("min", [INF], None), ("max", [0.5, INF], None),
        ("min", [-INF, 0.5], None),
    ],
)  # fmt: skip
def test_the_epoch_that_counts(direction, scores, epoch):
    if epoch is not None:
        assert _best_epoch("val_x", direction, scores) == epoch
        return
    with pytest.raises(
        keras_tuner.errors.FailedTrialError, match="val_x is not finite"
    ):
        _best_epoch("val_x", direction, scores)


@pytest.mark.parametrize("score", [NAN, INF, -INF])
@pytest.mark.parametrize("direction", ["max", "min"])
def test_an_oracle_takes_no_score_that_is_not_finite(tmp_path, score, direction):
    oracle = an_oracle(tmp_path)
    oracle.objective = keras_tuner.Objective("val_x", direction)
    oracle.finish(oracle.propose(), {"val_x": 0.5})
    failed = oracle.finish(oracle.propose(), {"val_x": score})
    assert failed.status == "FAILED"
    assert failed.message == f"its val_x is {score}, which is not finite."
    assert [trial.trial_id for trial in oracle.get_best_trials(3)] == ["0"]


class Score(keras.metrics.Metric):
    """Gives what it is told to."""

    def __init__(self, given=0.5, name="given"):
        super().__init__(name=name)
        self.given = given

    def update_state(self, *args, **kwargs):
        pass

    def result(self):
        return self.given

    def get_config(self):
        return {"given": self.given, "name": self.name}


@pytest.mark.slow
@pytest.mark.sampled(1)
@pytest.mark.parametrize("algorithm", ["bayesian", "random"])
@pytest.mark.parametrize("direction", ["max", "min"])
def test_trials_whose_score_is_not_finite_fail(
    tmp_path,
    search,  # noqa: F811
    algorithm,
    direction,
):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    keras.saving.register_keras_serializable("test")(Score)

    def build_student(hp):
        given = hp.Choice("given", [0.5, NAN, INF, -INF])
        model = mlp(4)
        model.compile("adam", loss, metrics=[Score(given)], run_eagerly=True)
        return model

    with pytest.warns(UserWarning, match="the objective val_given is not finite"):
        result = search(
            tmp_path, build_student, max_trials=8, epochs=1, executions_per_trial=2,
            algorithm=algorithm, temperature=4.0, alpha=0.1,
            objective=keras_tuner.Objective("val_given", direction),
        )  # fmt: skip
    finite = np.isfinite(result.trials["given"].to_numpy(dtype=float))
    assert 0 < finite.sum() < len(finite)
    assert ((result.trials["status"] == "COMPLETED") == finite).all()
    assert result.score == 0.5
