"""Where specialists help: by cluster, and by how many of them know the right class."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill.arguments import shown
from keras_distill.keras_compat import traced_quietly
from keras_distill.labels import as_labelled, classes_of
from keras_distill.showing import html_of
from keras_distill.specialists.ensemble import SpecialistEnsemble


@dataclasses.dataclass(frozen=True)
class Share:
    """The examples of one kind, and how many each of two models got right.

    Attributes:
        of: which examples: a number of specialists, or a cluster's number.
        examples: int.
        generalist: examples that the generalist got right.
        ensemble: examples that the ensemble got right.
    """

    of: int
    examples: int
    generalist: int
    ensemble: int

    @property
    def relative_change(self) -> float:
        """Change of the accuracy by the generalist's accuracy; NaN if that is 0."""
        if not self.generalist:
            return float("nan")
        return (self.ensemble - self.generalist) / self.generalist


def _shown(count: int, share: Share) -> str:
    return f"{count / share.examples:.1%}" if share.examples else "-"


@dataclasses.dataclass(frozen=True)
class SpecialistReport:
    """Generalist and ensemble on the same examples; prints as the paper's table 4.

    Attributes:
        by_coverage: for each number of specialists whose cluster holds the right class.
        by_cluster: for each specialist, the examples whose right class its cluster holds.
    """

    by_coverage: tuple[Share, ...]
    by_cluster: tuple[Share, ...]

    def __repr__(self) -> str:
        lines = ["specialists covering  examples  change in correct  relative change"]
        lines += [
            f"{s.of:>20}  {s.examples:>8,}  {s.ensemble - s.generalist:>+17,}  "
            f"{s.relative_change:>+15.1%}"
            for s in self.by_coverage
        ]
        lines += ["", "cluster  examples  generalist  ensemble"]
        lines += [
            f"{s.of:>7}  {s.examples:>8,}  {_shown(s.generalist, s):>10}  "
            f"{_shown(s.ensemble, s):>8}"
            for s in self.by_cluster
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [["by", "of", "examples", "generalist", "ensemble", "change"]]
        for by, shares in self._groups().items():
            rows += [
                [by, str(s.of), f"{s.examples:,}", _shown(s.generalist, s),
                 _shown(s.ensemble, s), f"{s.relative_change:+.1%}"]
                for s in shares
            ]  # fmt: skip
        return html_of(rows)

    def to_pandas(self) -> Any:
        """Returns the counts as a `pandas.DataFrame`, a row for each share of the examples.

        Columns: `by` ("coverage" or "cluster") and `of`, which examples; `examples`,
        `generalist` and `ensemble`, their number and how many each got right; and
        `relative_change`.
        """
        import pandas as pd

        names = [field.name for field in dataclasses.fields(Share)]
        rows = [
            {"by": by, **dataclasses.asdict(s), "relative_change": s.relative_change}
            for by, shares in self._groups().items()
            for s in shares
        ]
        return pd.DataFrame(rows, columns=["by", *names, "relative_change"])

    def _groups(self) -> dict[str, tuple[Share, ...]]:
        return {"coverage": self.by_coverage, "cluster": self.by_cluster}


def specialist_report(ensemble: SpecialistEnsemble, dataset: Any) -> SpecialistReport:
    """Counts what the specialists changed.

    Args:
        ensemble: `SpecialistEnsemble` with at least one specialist.
        dataset: finite `tf.data.Dataset` of `(x, y)` batches, or a tuple of arrays; y
            integers `(batch,)` or one-hot. Sample weights do not count.

    Returns:
        `SpecialistReport`.

    Raises:
        TypeError: if the ensemble or the dataset is something else.
        ValueError: if the dataset is empty, endless or brings no labels, or labels are no
            classes of the generalist.

    Reference: arXiv:1503.02531, tables 3 and 4.
    """
    if not isinstance(ensemble, SpecialistEnsemble):
        raise TypeError(
            f"ensemble must be a SpecialistEnsemble, got {shown(ensemble)}."
        )
    dataset = as_labelled(dataset, "dataset of the report", 256)
    models = (ensemble.generalist, ensemble)
    run = traced_quietly(
        lambda x: [tf.argmax(model(x, training=False), -1) for model in models],
        reduce_retracing=True,
    )
    parts = []
    for x, y, *_ in dataset:
        before, after = (answer.numpy() for answer in run(x))
        shape = (*before.shape, ensemble.classes)
        y, _ = classes_of(y, shape, np.ones(before.shape, bool))
        parts.append((y, before == y, after == y))
    if not parts:
        raise ValueError("the dataset is empty; check how it was split.")
    y, before, after = (np.concatenate(part) for part in zip(*parts, strict=True))
    member = ensemble.member > 0
    coverage = member.sum(0)[y]

    def share(of: int, chosen: np.ndarray) -> Share:
        counts = (chosen.sum(), before[chosen].sum(), after[chosen].sum())
        return Share(of, *map(int, counts))

    clusters = [share(m, row[y]) for m, row in enumerate(member)]
    return SpecialistReport(
        tuple(share(int(k), coverage == k) for k in np.unique(coverage)),
        tuple(s for s in clusters if s.examples),
    )
