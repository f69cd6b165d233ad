"""What a store of soft targets holds, as a table."""

from __future__ import annotations

import html
from typing import Any

from keras_distill.showing import html_of


def contents_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns one dict for each output and hidden layer of the teacher that is cached.

    Args:
        manifest: of the store.

    Returns:
        Each with `name` ("output" for a single one without a name), `kind` ("softmax",
        "sigmoid", "values", "layer", or `None` for classes or questions), `shape` of one
        example as the teacher gives it, `cached` ("all", or "top 10"), and `dtype`.
    """
    fields = {name: (dtype, shape) for name, dtype, shape in manifest["row"]}
    several = manifest["outputs"] != [None]
    kinds, classes = manifest.get("output_kinds"), manifest["classes"]
    found = []
    for i, key in enumerate(manifest["outputs"]):
        name = "logits" if key is None else f"{key}/logits"
        dtype, shape = fields[name]
        count = classes[i] if several else classes
        found.append(
            {
                "name": "output" if key is None else str(key),
                "kind": kinds[i] if several and kinds else kinds,
                "shape": (*shape[:-1], count),
                "cached": "all" if shape[-1] == count else f"top {shape[-1]}",
                "dtype": dtype,
            }
        )
    for name, (dtype, shape) in fields.items():
        if name.startswith("layer:"):
            found.append(
                {
                    "name": name.removeprefix("layer:"),
                    "kind": "layer",
                    "shape": tuple(shape),
                    "cached": "all",
                    "dtype": dtype,
                }
            )
    return found


def in_words(one: dict[str, Any]) -> str:
    """Returns one of these in a few words."""
    *leading, count = one["shape"]
    what = {"softmax": "classes", "sigmoid": "questions", "layer": "numbers"}
    words = f"{count} {what.get(one['kind'], one['kind'] or 'logits')}"
    words = words[:-1] if count == 1 else words
    words = words if one["cached"] == "all" else f"{one['cached']} of {words}"
    place = f" at each of {'x'.join(map(str, leading))}" if leading else ""
    name = "" if one["name"] == "output" else f"{one['name']}: "
    return f"{name}{words}{place} as {one['dtype']}"


class Contents:
    """Mixin of `SoftTargets`: how it shows what it holds."""

    path: str
    _content: dict[str, Any]

    @property
    def bytes_per_example(self) -> float:
        """Size of all shards on disk, by example and view."""
        total = sum(entry["bytes"] for entry in self._content["shards"])
        return total / self._content["examples"] / self._content["views"]

    def __repr__(self) -> str:
        c = self._content
        views = f", {c['views']} views" if c["views"] > 1 else ""
        held = ", ".join(in_words(one) for one in contents_of(c))
        return (
            f"SoftTargets({self.path!r}: {c['examples']:,} examples{views}, "
            f"{self.bytes_per_example:.1f} bytes each: {held})"
        )

    def _repr_html_(self) -> str:
        rows = [["output", "kind", "shape", "cached", "dtype"]]
        rows += [
            ["not known" if v is None else str(v) for v in one.values()]
            for one in contents_of(self._content)
        ]
        return f"<p>{html.escape(repr(self))}</p>{html_of(rows)}"

    def to_pandas(self) -> Any:
        """Returns what is cached as a `pandas.DataFrame`, a row for each output or layer.

        Columns: `kind` ("softmax", "sigmoid", "values" or "layer"; `None` where the teacher
        does not say it), `shape` of one example as the teacher gives it, `cached` ("all", or
        "top 10"), and `dtype` on disk.
        """
        import pandas as pd

        return pd.DataFrame(contents_of(self._content), dtype=object).set_index("name")
