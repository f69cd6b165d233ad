"""A folder that a run claims, locks and resumes, with files that are whole or not there."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import types
import uuid
from collections.abc import Iterator, Mapping
from typing import IO, Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill import live_objects
from keras_distill.arguments import check_path

#: How the names of files begin that are not whole yet.
TEMPORARY = ".tmp-"
SETTINGS = "settings.json"


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """A folder of one run: its settings, its lock, and what it has written so far.

    Several processes may share it, those that do the run's work among them. Locks are for
    local paths: other file systems have none.

    Args:
        path: of the folder, local or any that `tf.io.gfile` takes.
        what: the run's things, for messages: "soft targets", "specialists", "the search".
        labels: what settings are called in messages, by their keys; others by the key.
    """

    path: str
    what: str
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def file(self, name: str) -> str:
        """Returns the path of a file in the folder."""
        return os.path.join(self.path, name)

    def make(self) -> None:
        """Makes the folder, if it is not there.

        Raises:
            OSError: if it cannot be made.
        """
        with self.errors():
            tf.io.gfile.makedirs(self.path)

    # Settings ------------------------------------------------------------------------

    def claim(
        self,
        settings: Mapping[str, Any],
        name: str = SETTINGS,
        remedy: str = "Choose another path, or delete it.",
    ) -> bool:
        """Writes a run's settings, or makes sure that the run here has the same.

        Args:
            settings: that can be written as JSON.
            name: of the file that has them.
            remedy: what a user whose settings differ may do, a sentence.

        Returns:
            Whether they were there, so that the run is resumed.

        Raises:
            ValueError: if settings differ, naming each; or if the file is damaged.
        """
        found = self.read_json(name)
        if found is None:
            self.write_json(name, settings)
            return False
        self.refuse_differences(found, settings, remedy)
        return True

    def refuse_differences(
        self, found: Mapping, wanted: Mapping, remedy: str, state: str = ""
    ) -> None:
        """Refuses settings that differ from those found.

        Args:
            found: settings of what is here.
            wanted: those that must be the same; other keys of `found` do not count.
            remedy: what a user whose settings differ may do, a sentence.
            state: of what is here, as "finished ".

        Raises:
            ValueError: naming each difference.
        """
        kept = f"a {self.what[4:]}" if self.what.startswith("the ") else self.what
        if phrases := self.differences(found, wanted):
            raise ValueError(
                f"{self.path!r} holds {state}{kept} of another kind: "
                f"{'; '.join(phrases)}. {remedy}"
            )

    def differences(self, found: Mapping, wanted: Mapping) -> list[str]:
        """Returns a phrase for each setting of `wanted` that differs."""
        phrases = []
        for key, value in wanted.items():
            phrases += _differ(self.labels.get(key, key), found.get(key), value)
        return phrases

    # Files ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def whole(self, name: str) -> Iterator[str]:
        """Yields a temporary path; what is written to it becomes the file at the end.

        Args:
            name: of the file; the temporary one has the same ending.

        Raises:
            OSError: if it cannot be written.
        """
        _, dot, ending = os.path.basename(name).partition(".")
        temporary = self.file(f"{TEMPORARY}{uuid.uuid4().hex}{dot}{ending}")
        try:
            with self.errors():
                yield temporary
                tf.io.gfile.rename(temporary, self.file(name), overwrite=True)
        except BaseException:
            with contextlib.suppress(tf.errors.OpError):
                tf.io.gfile.remove(temporary)
            raise

    def write_text(self, name: str, text: str) -> None:
        """Writes a text whole or not at all."""
        with self.whole(name) as path, tf.io.gfile.GFile(path, "w") as file:
            file.write(text)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes JSON whole or not at all, with a checksum under a key of that name."""
        content = {**content, "checksum": checksum(content)}
        self.write_text(name, json.dumps(content, indent=1))

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Returns what `write_json` wrote, or `None` if there is no such file.

        Raises:
            ValueError: if it is damaged.
        """
        if not self.has(name):
            return None
        with tf.io.gfile.GFile(self.file(name)) as file:
            text = file.read()
        try:
            content = json.loads(text)
            is_whole = content.pop("checksum") == checksum(content)
        except (ValueError, KeyError, TypeError, AttributeError):
            is_whole = False
        if not is_whole:
            raise ValueError(
                f"{self.file(name)} is damaged; delete {self.path!r} and begin anew."
            )
        return content

    def has(self, name: str) -> bool:
        """Tells whether there is a file or folder of that name."""
        return tf.io.gfile.exists(self.file(name))

    def remove(self, *names: str) -> None:
        """Removes files and folders, in this order; those that are not there are none."""
        for name in names:
            path = self.file(name)
            if tf.io.gfile.isdir(path):
                tf.io.gfile.rmtree(path)
            elif tf.io.gfile.exists(path):
                tf.io.gfile.remove(path)

    def remove_temporary(self) -> None:
        """Removes what killed processes left unfinished."""
        if tf.io.gfile.isdir(self.path):
            names = [name.rstrip("/") for name in tf.io.gfile.listdir(self.path)]
            self.remove(*(name for name in names if name.startswith(TEMPORARY)))

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turns what TensorFlow says of files into the standard `OSError`."""
        kinds = (
            tf.errors.ResourceExhaustedError,
            tf.errors.NotFoundError,
            tf.errors.PermissionDeniedError,
            tf.errors.FailedPreconditionError,
            tf.errors.UnavailableError,
        )
        try:
            yield
        except kinds as error:
            raise OSError(
                f"{self.what} could not be written to {self.path!r}: {error.message}."
            ) from error

    # Locks ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, part: tuple[int, int] | None = None) -> Iterator[None]:
        """Keeps a second run out of the folder, by a lock that dies with the process.

        Args:
            part: `(i, n)` of a run whose parts share the folder; `None` for all of it.

        Raises:
            BlockingIOError: if another process has it.
        """
        with contextlib.ExitStack() as stack:
            wanted = [(".lock", part is not None)]
            if part is not None:
                wanted.append((f".lock-{part[0]}-of-{part[1]}", False))
            try:
                for name, is_shared in wanted:
                    stack.enter_context(self._locked(name, is_shared, wait=False))
            except BlockingIOError as error:
                raise BlockingIOError(
                    f"another process is at work on {self.what} in {self.path!r}; wait "
                    "for it, or choose another path."
                ) from error
            yield

    def settling(self) -> contextlib.AbstractContextManager[None]:
        """Lets one process at a time compare and write settings; others wait."""
        return self._locked(".lock-settings", False, wait=True)

    @contextlib.contextmanager
    def _locked(self, name: str, is_shared: bool, wait: bool) -> Iterator[None]:
        if "://" in self.path:
            yield
            return
        import fcntl  # not on every system, so only where something is written

        kind = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
        with self._opened(name) as file:
            fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
            yield

    def _opened(self, name: str) -> IO:
        try:
            return open(self.file(name), "w")
        except OSError as error:
            raise type(error)(
                f"{self.what} could not be written to {self.path!r}: {error.strerror}; "
                "choose a folder that may be written to."
            ) from error


def write_text(path: str, text: str) -> None:
    """Writes a local file whole or not at all."""
    folder, name = os.path.split(path)
    RunDirectory(folder, name).write_text(name, text)


def as_json(value: Any) -> Any:
    """Returns a value as it is read back from JSON: tuples are lists there."""
    return json.loads(json.dumps(value))


def _differ(label: str, found: Any, wanted: Any) -> list[str]:
    wanted = as_json(wanted)
    if found == wanted:
        return []
    if isinstance(found, dict) and isinstance(wanted, dict):
        whose = f"{label}'" if label.endswith("s") else f"{label}'s"
        for part in dict.fromkeys([*wanted, *found]):  # the first tells enough
            a, b = found.get(part), wanted.get(part)
            if isinstance(a, dict) and isinstance(b, dict) and a != b:
                return _differ(f"{whose} {part}", a, b)
            if a != b:
                verb = "differ" if part.endswith("s") else "differs"
                return [f"{whose} {part} {verb} ({_or_none(a)}, not {_or_none(b)})"]
    return [f"{label} is {found!r}, not {wanted!r}"]


def _or_none(value: Any) -> str:
    return "none" if value is None else str(value)


def checksum(content: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a content as JSON, 64 hex digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# Fingerprints ----------------------------------------------------------------------

FINGERPRINT_BYTES = 8


def file_digest(path: str) -> str:
    """Returns the BLAKE2b of a file's bytes, 64 hex digits."""
    found = hashlib.blake2b(digest_size=32)
    with tf.io.gfile.GFile(path, "rb") as file:
        while chunk := file.read(1 << 22):
            found.update(chunk)
    return found.hexdigest()


def examples_fingerprint(inputs: Any) -> tf.Tensor:
    """Returns the fingerprint of each example of a batch.

    FarmHash Fingerprint64 of the example's bytes, as `tf.fingerprint` has it; for several
    inputs, that of their fingerprints one after another, in the order of
    `tf.nest.flatten`. Labels do not count.

    Args:
        inputs: dense tensors, batch first.

    Returns:
        uint8 `(batch, 8)`.
    """
    parts = [tf.fingerprint(part) for part in tf.nest.flatten(inputs)]
    return parts[0] if len(parts) == 1 else tf.fingerprint(tf.concat(parts, 1))


def teacher_fingerprint(teacher: Any) -> dict[str, Any]:
    """Returns what identifies a teacher, as given to `Distiller`.

    Args:
        teacher: a `keras.Model`, a path, a callable, or a list of these.

    Returns:
        dict with `kind`, and where they can be known `architecture` and `weights`: hex
        digests that do not depend on layer names. A callable has only its name.
    """
    if isinstance(teacher, (list, tuple)):
        return {
            "kind": "list",
            "members": [teacher_fingerprint(member) for member in teacher],
        }
    if isinstance(teacher, (str, os.PathLike)):
        path = check_path("teacher", teacher)
        if path.endswith((".keras", ".h5", ".hdf5")):
            return teacher_fingerprint(keras.saving.load_model(path, compile=False))
        return {"kind": "SavedModel", "weights": _of_folder(path)}
    if isinstance(teacher, keras.Model):
        return {
            "kind": "keras.Model",
            "architecture": architecture_fingerprint(teacher),
            "weights": _of_weights(teacher),
        }
    if (given := getattr(teacher, "given", None)) is not None:  # of `as_teacher`
        found = teacher_fingerprint(given)
        for key, value in teacher.settings.items():
            found[f"outer {key}" if key in found else key] = value
        return found
    return {"kind": "callable", "name": name_of(teacher)}


def name_of(function: Any) -> str:
    """Returns the module and name of a function, or of the class of an object."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def architecture_fingerprint(model: keras.Model) -> str:
    """Returns a hex digest of a model's layers, whatever their names."""
    return _digest(_architecture(model).encode())


def arrays_fingerprint(arrays: list[np.ndarray]) -> str:
    """Returns a hex digest of arrays: their types, shapes and values."""
    digest = hashlib.sha256()
    for array in arrays:
        if array.dtype.kind == "O":  # strings; their bytes would be addresses
            array = array.astype(str)
        digest.update(f"{array.dtype}{array.shape}".encode())
        flat = array.reshape(-1)
        for start in range(0, len(flat), 1 << 22):  # a memory map need not fit
            digest.update(flat[start : start + (1 << 22)].tobytes())
    return digest.hexdigest()[:32]


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:32]


def _of_weights(model: keras.Model) -> str:
    return arrays_fingerprint([keras.ops.convert_to_numpy(v) for v in model.weights])


def _architecture(model: keras.Model) -> str:
    """Returns the configuration with layers numbered, since names count up by process."""
    try:
        with live_objects.named(model) as objects:
            config = json.dumps(model.get_config(), sort_keys=True, default=str)
    except NotImplementedError:  # a subclassed model
        shapes = [tuple(variable.shape) for variable in model.weights]
        return f"{name_of(type(model))} {shapes}"
    functions = {
        name: live_objects.function_digest(thing)
        for name, thing in objects.items()
        if isinstance(thing, types.FunctionType)
    }
    if functions:
        config += json.dumps(functions)
    names = dict.fromkeys(re.findall(r'"name": "([^"]+)"', config))
    numbers = {name: f"#{number}" for number, name in enumerate(names)}
    return re.sub(
        r'"([^"]+)"', lambda m: f'"{numbers.get(m.group(1), m.group(1))}"', config
    )


def _of_folder(path: str) -> str:
    digest = hashlib.sha256()
    for folder, _, files in sorted(tf.io.gfile.walk(path)):
        for name in sorted(files):
            # Written anew by every save of the same model.
            if name == "fingerprint.pb":
                continue
            with tf.io.gfile.GFile(os.path.join(folder, name), "rb") as file:
                digest.update(name.encode())
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
    return digest.hexdigest()[:32]
