"""One output, or a dict or list of them: what is given for all, by name, key or position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from keras_distill.last_layers import symbolic_outputs
from keras_distill.several_logits import ONE_OUTPUT


class ModelOutputs(NamedTuple):
    """What one model says about a batch.

    Attributes:
        outputs: as the model gives them, a tensor or a dict or list of them.
        logits: the same structure as logits.
        layers: outputs of the matched hidden layers, by name.
    """

    outputs: Any
    logits: Any
    layers: dict[str, Any]


def has_several(structure: Any) -> bool:
    """Tells whether this is a dict or list of outputs, as opposed to a single one."""
    is_nest = isinstance(structure, (dict, list, tuple))
    return is_nest and not isinstance(structure, ONE_OUTPUT)


def by_output(structure: Any) -> Iterator[tuple[Any, Any]]:
    """Yields `(key, value)` of a dict, list or single output; a single one has no key."""
    if isinstance(structure, dict):
        yield from structure.items()
    elif has_several(structure):
        yield from enumerate(structure)
    else:
        yield None, structure


def each_output(function: Callable[[Any], Any], structure: Any) -> Any:
    """Returns the structure with a function of each output in its place."""
    if isinstance(structure, dict):
        return {key: function(output) for key, output in structure.items()}
    if has_several(structure):
        return type(structure)(map(function, structure))
    return function(structure)


def at(structure: Any, key: Any) -> Any:
    """Returns one output of a structure; all of it for `...` or a single output."""
    if key is None or key is ... or not has_several(structure):
        return structure
    return structure[key]


def keyed(
    given: Any, keys: Sequence, names: Sequence[str] = (), what: str = ""
) -> dict:
    """Returns what was given for all outputs, or by name, key or position, by key.

    As Keras takes losses by the names of a Functional model's outputs, also where it returns
    a list of them.

    Args:
        given: one for all; a dict by output name or key; or a list in their order.
        keys: of the outputs, `[None]` for a single one.
        names: of the outputs in the same order, where they have names.
        what: was given, for the error.

    Returns:
        A dict with all keys; `None` for those that nothing was given for.

    Raises:
        ValueError: if it names an output that there is not, or has too many.
    """
    if not has_several(given):
        return dict.fromkeys(keys, given)
    found = dict.fromkeys(keys)
    if not isinstance(given, dict):
        if len(given) > len(keys):
            raise ValueError(
                f"{what} has {len(given)} parts, but the model has {len(keys)} output(s)."
            )
        found.update(zip(keys, given, strict=False))
        return found
    by_name = {**dict(zip(names, keys, strict=False)), **{key: key for key in keys}}
    # JSON has no integer keys, which the outputs of a list have.
    by_name.update({str(key): key for key in keys if isinstance(key, int)})
    for name, value in given.items():
        if name not in by_name:
            known = ", ".join(repr(one) for one in (names or keys) if one is not None)
            raise ValueError(
                f"{what} names the output {name!r}, which the model does not have; its "
                f"outputs are {known or 'one without a name'}."
            )
        found[by_name[name]] = value
    return found


def keys_of(model: Any) -> tuple[list, list[str]]:
    """Returns keys and names of a model's outputs; `[None]` where they are not known."""
    if not getattr(model, "outputs", None):
        return [None], []
    outputs = symbolic_outputs(model)
    keys = [key for key, _ in by_output(outputs)]
    names = list(getattr(model, "output_names", None) or [])
    if len(names) != len(keys):
        return keys, []
    if isinstance(outputs, dict):  # Keras names them in the order of the sorted keys
        named = dict(zip(sorted(keys), names, strict=True))
        names = [named[key] for key in keys]
    return keys, names


def by_key(given: Any, model: Any, what: str) -> Any:
    """Returns what was given by output name by the output's key; see `keyed`.

    A dict stays what it is where the model does not say its outputs.
    """
    if not isinstance(given, dict):
        return given
    if not getattr(model, "outputs", None):
        return given
    found = keyed(given, *keys_of(model), what)
    return {key: value for key, value in found.items() if value is not None}


def in_structure_of(given: Any, model: Any, what: str, default: Any = None) -> Any:
    """Returns what was given by output name in the structure of a model's outputs.

    Args:
        given: a dict by output name, or anything else, which stays what it is.
        model: a list of whose outputs, or a single one, has names.
        what: was given, for the error.
        default: of an output that is left out.

    Raises:
        ValueError: if it names an output that there is not.
    """
    if not isinstance(given, dict) or isinstance(given, ONE_OUTPUT):
        return given
    keys, names = keys_of(model)
    if not names or isinstance(symbolic_outputs(model), dict):
        return given
    found = {**dict.fromkeys(keys, default), **by_key(given, model, what)}
    return found[None] if keys == [None] else list(found.values())


def single(answers: dict) -> Any:
    """Returns the answer, if all outputs have the same; else the dict of them."""
    first = next(iter(answers.values()), None)
    return first if all(answer == first for answer in answers.values()) else answers


def answer_for(answers: Any, key: Any) -> Any:
    """Returns the answer for one output, of one for all or a dict of them."""
    return answers.get(key) if isinstance(answers, dict) else answers
