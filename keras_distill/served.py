"""What an export of ours serves, seen from the names of its answers."""

from __future__ import annotations

from typing import Any


def served(outputs: dict[str, Any]) -> dict[Any, tuple[str, str | None]]:
    """Returns what teaches in one of our own exports, and its kind, by output.

    Args:
        outputs: tensors or specs by the name of the answer.

    Returns:
        A name and a kind by the output's key; empty for what is none of ours.
    """
    if {"logits", "probabilities"} <= set(outputs):
        return {None: ("logits", _kind(outputs, ""))}
    found: dict[Any, tuple[str, str | None]] = {}
    others = set(outputs)
    for name in outputs:
        what = name.rpartition("_")[2]
        prefix = name.removesuffix(what)
        names = {"values": ["values"], "logits": ["logits", "probabilities", "label"]}
        answers = {prefix + one for one in names.get(what, [])}
        if answers and answers <= others:
            others -= answers
            kind = "values" if what == "values" else _kind(outputs, prefix)
            found[prefix[:-1] if prefix else None] = (name, kind)
    if others:
        return {}
    numbers = [str(i) for i in range(len(found))]  # of the outputs of a list
    is_list = len(found) > 1 and set(found) == set(numbers)
    return {int(key): found[key] for key in numbers} if is_list else found


def _kind(outputs: dict[str, Any], prefix: str) -> str | None:
    """Tells classes from yes/no questions, which have a label each."""
    logits, label = outputs[prefix + "logits"].shape, outputs.get(prefix + "label")
    if label is None or None in (label.shape.rank, logits.rank):
        return None
    has_one_each = label.shape.rank == logits.rank or logits[-1] == 1
    return "sigmoid" if has_one_each else "softmax"
