"""What one trial's model would carry into the next: variables that both have."""

from __future__ import annotations

import weakref
from typing import Any

import keras

from keras_distill.keras_compat import own_variables
from keras_distill.sharing import is_changed_by_training


class Things:
    """Objects by identity, as long as they live; can be pickled, and is empty then."""

    def __init__(self) -> None:
        self._refs: dict[int, weakref.ref] = {}

    def __contains__(self, thing: Any) -> bool:
        ref = self._refs.get(id(thing))
        return ref is not None and ref() is thing

    def add(self, *things: Any) -> None:
        """Takes objects in, and forgets those that are gone."""
        self._refs = {i: ref for i, ref in self._refs.items() if ref() is not None}
        self._refs |= {id(thing): weakref.ref(thing) for thing in things}

    def __getstate__(self) -> dict[str, Any]:
        return {"_refs": {}}


class Students:
    """The students that were built so far: a new one brings no learned variable of theirs.

    A common backbone is allowed, as long as no trial trains it.
    """

    def __init__(self) -> None:
        self._models, self._known, self._trained = Things(), Things(), Things()

    def check(self, student: keras.Model) -> None:
        """Refuses a student that shares with an earlier one what either's training changes.

        Raises:
            ValueError: naming the model or the layer.
        """
        remedy = (
            "so that weights would be carried from trial to trial. Build all of it within "
            "build_student, from keras.models.clone_model(...) and set_weights if it is "
            "trained already; or freeze what is common (layer.trainable = False)."
        )
        owned = list(own_variables(student))
        is_unbuilt = student.trainable and not any(variables for _, variables in owned)
        if student in self._models and is_unbuilt:
            raise ValueError(
                f"build_student returns the same model {student.name!r} again, {remedy}"
            )
        for layer, variables in owned:
            for variable in variables:
                both = (layer, variable)
                is_learned = is_changed_by_training(layer) or any(
                    one in self._trained for one in both
                )
                if is_learned and any(one in self._known for one in both):
                    what = (
                        f"the same model {student.name!r}"
                        if student in self._models
                        else f"a model whose layer {layer.name!r} an earlier trial's has too"
                    )
                    raise ValueError(f"build_student returns {what}, {remedy}")
        self._models.add(student)
        for layer, variables in owned:
            self._known.add(layer, *variables)
            if is_changed_by_training(layer):
                self._trained.add(layer, *variables)
