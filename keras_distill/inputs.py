"""Which of a batch's inputs a model takes: by their names, never by their places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras


def inputs_for(model: Any, x: Any, who: str = "model") -> Any:
    """Returns what a model takes of a dict of inputs, in the structure that it takes.

    Keras gives a Functional model that lacks some of the keys those that sort first.

    Args:
        model: a `keras.Model` or anything else that takes inputs. Only a Functional or
            Sequential model says what it takes; any other is given all.
        x: a batch, its specs, or any other inputs by name; what is no dict is returned
            as it is.
        who: what the model is, for messages.

    Raises:
        ValueError: if the dict lacks an input of the model, or a list has others than it.
    """
    wanted = symbolic_inputs(model)
    if wanted is None:
        return x
    if not isinstance(x, Mapping):
        _check_count(len(keras.tree.flatten(wanted)), x, model, who)
        return x
    if isinstance(wanted, dict):
        if all(key in x for key in wanted):
            return {key: x[key] for key in wanted}
        names = {
            key: getattr(part, "name", key)  # of a deeper structure only its key
            for key, part in wanted.items()
        }
        if all(name in x for name in names.values()):
            return {key: x[name] for key, name in names.items()}
        wanted_names = list(wanted)
    else:
        wanted_names = [part.name for part in keras.tree.flatten(wanted)]
        if all(name in x for name in wanted_names):
            return keras.tree.map_structure(lambda part: x[part.name], wanted)
    raise ValueError(
        f"the {who} {getattr(model, 'name', '')!r} takes the inputs "
        f"{', '.join(map(repr, wanted_names))}, but the data has "
        f"{', '.join(map(repr, x))}; name its inputs as the data does, as in "
        f"keras.Input(..., name={next(iter(x), 'image')!r}), or give the data those keys."
    )


def _check_count(takes: int, x: Any, model: Any, who: str) -> None:
    """Refuses a list of more or fewer inputs, of which Keras may take the first."""
    count = len(keras.tree.flatten(x)) if isinstance(x, (list, tuple)) else takes
    if count != takes:
        remedy = (
            "give one array, as numpy.array(x), and the labels as y"
            if takes == 1
            else "give one array for each"
        )
        raise ValueError(
            f"the {who} {getattr(model, 'name', '')!r} takes {takes} input(s), and the data "
            f"is a {type(x).__name__} of {count}; {remedy}. Of inputs that a student and a "
            "teacher share in part, give a dict by name."
        )


def shapes_of_inputs(model: Any) -> dict[str, tuple] | None:
    """Returns the shape of each input of a model by its name, the batch axis first.

    In the order of `keras.tree.flatten`. `None` where the model does not say.
    """
    wanted = symbolic_inputs(model)
    if wanted is None:
        return None
    if isinstance(wanted, dict):
        wanted = {
            key: keras.tree.map_structure(lambda part: tuple(part.shape), wanted[key])
            for key in sorted(wanted)
        }
        is_flat = all(
            isinstance(shape[0], (int, type(None))) for shape in wanted.values()
        )
        return wanted if is_flat else None
    return {part.name: tuple(part.shape) for part in keras.tree.flatten(wanted)}


def symbolic_inputs(model: Any) -> Any:
    """Returns the symbolic inputs of a Functional or Sequential model, else `None`."""
    if not (isinstance(model, keras.Model) and getattr(model, "inputs", None)):
        return None
    if isinstance(model, keras.Sequential):
        return model.inputs[0]
    return getattr(model, "input", None)
