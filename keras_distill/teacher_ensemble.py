"""Several teachers as one: the mean of what they say."""

# ruff: noqa: D102 - methods do what those of `Teacher` do

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.several_logits import mean_of_members
from keras_distill.structures import ModelOutputs, answer_for, by_output
from keras_distill.teacher import Teacher


class TeacherEnsemble(Teacher):
    """Several teachers as one: the mean of their tempered probabilities or logits."""

    def __init__(self, members: list[Teacher], average: str) -> None:
        super().__init__(self._no_function, True, None, f"list of {len(members)}")
        self.members = members
        self.average = average
        self.input_shapes = next(filter(None, (m.input_shapes for m in members)), None)

    @staticmethod
    def _no_function(x: Any) -> Any:
        raise NotImplementedError

    def matching(
        self, layer_names: Sequence[str] = (), from_logits: Any = None
    ) -> Teacher:
        bound = super().matching(layer_names)
        assert isinstance(bound, TeacherEnsemble)
        bound.members = [m.matching((), from_logits) for m in self.members]
        return bound

    def __call__(self, x: Any, temperature: Any) -> ModelOutputs:
        found = self.by_member(x, temperature)
        kinds = self.members[0].kinds
        means = {
            key: mean_of_members(
                one,
                temperature,
                "values" if self.average == "logits" else answer_for(kinds, key),
            )
            for key, one in by_output(found)
        }
        logits = keras.tree.pack_sequence_as(found, list(means.values()))
        return ModelOutputs(logits, logits, {})

    def by_member(self, x: Any, temperature: Any) -> Any:
        """Returns the members' logits `(batch, ..., members, classes)`, by output."""
        answers = [member(x, temperature).logits for member in self.members]
        rows = {part.shape[0] for part in keras.tree.flatten(answers)} - {None}
        if len(rows) > 1:
            raise ValueError(
                "the teachers of a list answer different numbers of rows for one batch: "
                f"{', '.join(map(str, sorted(rows)))}; each must give one for each example."
            )
        return keras.tree.map_structure(lambda *parts: ops.stack(parts, -2), *answers)

    def forget_kinds(self) -> None:
        super().forget_kinds()
        for member in self.members:
            member.forget_kinds()

    def take_values(self, kinds: Any) -> None:
        super().take_values(kinds)
        for member in self.members:
            member.take_values(kinds)

    def inputs_of(self, x: Any) -> Any:
        return [member.inputs_of(x) for member in self.members]

    @property
    def accepts_nan(self) -> bool:
        return all(member.accepts_nan for member in self.members)

    @property
    def answers_each_example(self) -> bool:
        return all(member.answers_each_example for member in self.members)

    @property
    def averages_probabilities(self) -> bool:  # type: ignore[override]
        return self.average == "probabilities" and len(self.members) > 1

    @property
    def parameters(self) -> int | None:
        sizes = [member.parameters for member in self.members]
        return None if None in sizes else sum(filter(None, sizes))

    @property
    def is_known(self) -> bool:
        return all(member.is_known for member in self.members)

    def look_at(
        self,
        x: Any,
        outputs: Collection | None = None,
        kinds: Any = None,
        shapes: dict | None = None,
        is_strict: bool = False,
    ) -> None:
        for member in self.members:
            member.look_at(x, outputs, kinds, shapes, is_strict)
            member.kinds = kinds if member.kinds is None else member.kinds
        self.kinds = self.members[0].kinds

    @property
    def shapes(self) -> dict[Any, tuple]:
        return self.members[0].shapes
