"""The settings of soft targets, listed once: what made them, and how they lie on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_distill.arguments import MOST, check_int, check_temperature
from keras_distill.run_directory import SETTINGS, RunDirectory

FORMAT = "keras_distill soft targets"
VERSION = 2
FINISHED = "manifest.json"
DTYPES = ("float16", "bfloat16", "float32")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What made a store, and how a row lies in it: the keys of `settings.json`.

    The manifest has these and what is known at the end. Those with `compare=False` follow
    from the others.

    Attributes:
        format: of the files.
        format_version: of the files; a newer one is refused. 2 where there are `members`.
        teacher: fingerprints of the teacher, and how a list is averaged.
        from_logits: whether its outputs are logits; a list or dict for several.
        outputs: keys of its outputs; `[None]` for a single one.
        outputs_are_dict: whether several outputs are a dict, as opposed to a tuple.
        classes: number of classes, or a list of them for several outputs.
        output_kinds: "softmax", "sigmoid" or "values", what the numbers describe; `None`
            where nothing says it; a list for several outputs. Stores of before have none.
        dtype: of the logits on disk.
        top_k: how many logits are cached; `None` for all.
        layers: names of the hidden layers that are cached too.
        views: how many.
        augment: name of the function that makes the views; `None` for none.
        seed: of the views.
        temperature: of the mean of several teachers' probabilities, where it is that
            which is cached.
        members: of how many teachers each one's logits are cached; `None` for one answer.
        inputs: shape and dtype of each of one example's inputs, flat.
        examples: how many; `None` until all data was read, where it does not say.
        shard_size: examples in a shard; `None` until the size of a row is known.
        batch_size: examples that the teacher sees at once.
        row: name, dtype and shape of each field.
        row_bytes: size of a row.

    Raises:
        ValueError: if a value that a user may give is out of range.
    """

    format: str = dataclasses.field(default=FORMAT, compare=False)
    format_version: int = dataclasses.field(default=1, compare=False)
    teacher: Mapping[str, Any] | None = None
    from_logits: Any = None
    outputs: list = dataclasses.field(default_factory=list)
    outputs_are_dict: bool = dataclasses.field(default=False, compare=False)
    classes: Any = None
    output_kinds: Any = None
    dtype: str
    top_k: int | None
    layers: list[str]
    views: int
    augment: str | None
    seed: int
    temperature: float | None
    inputs: list = dataclasses.field(default_factory=list)
    examples: Any = None
    shard_size: Any
    batch_size: int
    row: list = dataclasses.field(default_factory=list, compare=False)
    row_bytes: int = dataclasses.field(default=0, compare=False)
    members: int | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(
                f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}."
            )
        most = {"views": 1000}
        for name in ("top_k", "views", "seed", "shard_size", "batch_size"):
            value, least = getattr(self, name), 0 if name == "seed" else 1
            if value is not None or name not in ("top_k", "shard_size"):
                value = check_int(name, value, least, most.get(name, MOST))
                object.__setattr__(self, name, value)
        if self.views > 1 and self.augment is None:
            raise ValueError(
                f"views={self.views} without augment would be all the same; pass "
                "augment=fn, with fn(x, seed) from an example and an int64 seed (2,) to one."
            )
        if self.temperature is not None:
            temperature = check_temperature(self.temperature)
            object.__setattr__(self, "temperature", temperature)

    @classmethod
    def of_manifest(cls, content: Mapping[str, Any]) -> Settings:
        """Returns the settings in a manifest."""
        known = {
            f.name: content[f.name]
            for f in dataclasses.fields(cls)
            if f.name in content
        }
        return cls(**known)

    def content(self) -> dict[str, Any]:
        """Returns what is written."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def compared(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what must be the same as in what was found on disk."""
        fields = dataclasses.fields(self)
        wanted = {f.name: getattr(self, f.name) for f in fields if f.compare}
        if None in (self.examples, found["examples"]):
            del wanted["examples"]  # not known until all was read
        if "output_kinds" not in found and self.row == found["row"]:
            del wanted["output_kinds"]  # of before: the same bytes
        return wanted

    @property
    def kinds(self) -> dict[Any, str | None]:
        """The kind of each output, by its key."""
        kinds, keys = self.output_kinds, self.outputs
        kinds = kinds if isinstance(kinds, list) else [kinds] * len(keys)
        return dict(zip(keys, kinds, strict=True))

    @property
    def kinds_taught(self) -> dict[Any, str | None]:
        """The kind that what is cached of each output may teach, by its key.

        Where nothing says it, that is "softmax" with `top_k`, and "logits" where what is
        cached is exact for logits alone.
        """
        fields = {name: shape for name, _, shape in self.row}
        taught: dict[Any, str | None] = {}
        for key, kind in self.kinds.items():
            prefix = "" if key is None else f"{key}/"
            is_relative = f"{prefix}max" in fields and fields[f"{prefix}logits"][-1] > 1
            by_row = "logits" if is_relative else None
            taught[key] = kind or (
                "softmax" if f"{prefix}indices" in fields else by_row
            )
        return taught

    @property
    def mean_temperature(self) -> float | None:
        """The one temperature that what is cached is for; `None` for all of them."""
        teacher = self.teacher or {}
        is_mean = (
            teacher.get("average") == "probabilities" and len(teacher["members"]) > 1
        )
        return self.temperature if is_mean else None

    @property
    def shards_per_view(self) -> int:
        """How many shards a view has."""
        return -(-self.examples // self.shard_size)


def directory(path: str) -> RunDirectory:
    """Returns the folder of a store."""
    return RunDirectory(path, "soft targets", {"teacher": "the teacher"})


def read_settings(folder: RunDirectory, name: str = SETTINGS) -> dict[str, Any] | None:
    """Returns what a store's settings or manifest say; `None` if there is no such file.

    Raises:
        ValueError: if it is damaged, or of a newer format.
    """
    content = folder.read_json(name)
    if content is not None and content["format_version"] > VERSION:
        raise ValueError(
            f"{folder.path!r} has format version {content['format_version']}, this "
            f"keras_distill reads up to {VERSION}; install a newer one."
        )
    return content
