"""The ONNX converter: a program that imports nothing of ours.

It is run by its path in a fresh process, which loads TensorFlow and tf2onnx and not this
package, so that nothing of their logging and memory stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

_OPSET = 17


def convert(saved_model: str, path: str, bits: int | None = None) -> dict[str, Any]:
    """Writes a SavedModel's signature `serving_default` as an .onnx file.

    Args:
        saved_model: its path.
        path: of the file.
        bits: of the weights of a model of `quantize_aware`.

    Returns:
        A dict that is empty; or has `refused`, a sentence on what cannot be converted, and
        `operations`, the names of those that are missing; or `unwritten`, why the file could
        not be written.
    """
    try:
        model = _converted(saved_model)
        if bits is not None:
            _have_integer_weights(model.graph, bits)
        missing = list(_without_operation(model.graph))
        content = model.SerializeToString()
    except Exception as error:  # of many kinds, which differ between versions
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = lines[0][:300] if lines else type(error).__name__
        return {"refused": f"the converter says: {said}", "operations": []}
    if missing:
        names = sorted({operation for operation, _ in missing})
        where = sorted({_layer(place) for _, place in missing} - {""})
        at = f" (in {', '.join(where[:5])})" if where else ""
        refused = f"it has no operation for {', '.join(names)}{at}"
        return {"refused": refused, "operations": names}
    try:
        with open(path, "wb") as file:
            file.write(content)
    except OSError as error:
        return {"unwritten": error.strerror}
    return {}


def _converted(saved_model: str) -> Any:
    from tf2onnx import optimizer, tf_loader, tfonnx

    # By the SavedModel: by the function, constants that it captured would become inputs.
    graph, inputs, outputs, tables, names = tf_loader.from_saved_model(
        saved_model,
        None,
        None,
        ["serve"],
        ["serving_default"],
        return_initialized_tables=True,
        return_tensors_to_rename=True,
    )
    with tf.device("/cpu:0"), tf.Graph().as_default() as whole:
        tf.import_graph_def(graph, name="")
        converted = tfonnx.process_tf_graph(
            whole,
            opset=_OPSET,
            custom_op_handlers={"Log1p": (_log1p, []), "Erfc": (_erfc, [])},
            input_names=inputs,
            output_names=outputs,
            tensors_to_rename=names,
            initialized_tables=tables,
        )
        model = optimizer.optimize_graph(converted).make_model("keras-distill")
    _name_free_sizes(model)
    return model


def _log1p(ctx: Any, node: Any, name: str, args: Any) -> None:
    """Has log(1 + x) of small x exact too, which ONNX has no operation for.

    With u = 1 + x rounded, log(u) * x / (u - 1) is right to the last bits, as the errors of
    both factors are one and the same. Where u - 1 is x there is none, also at infinity.

    Reference: Goldberg, *What Every Computer Scientist Should Know*, 1991, theorem 4.
    """
    import onnx

    (x,), output, dtype = node.input, node.output[0], ctx.get_dtype(node.output[0])
    shape = ctx.get_shape(output)
    numbers = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    ctx.remove_node(node.name)

    def made(operation: str, *inputs: str, **given: Any) -> str:
        return ctx.make_node(operation, list(inputs), **given).output[0]

    one = ctx.make_const(f"{name}/one", np.array(1, numbers)).output[0]
    u = made("Add", x, one)
    rest = made("Sub", u, one)
    is_exact, is_nothing = made("Equal", rest, x), made("Equal", u, one)
    log = made("Log", u)
    share = made("Div", x, made("Where", is_nothing, one, rest))
    small = made("Where", is_nothing, x, made("Mul", log, share))
    ctx.make_node(
        "Where",
        [is_exact, log, small],
        outputs=[output],
        name=name,
        shapes=[shape],
        dtypes=[dtype],
    )


def _have_integer_weights(graph: Any, bits: int) -> None:
    """Writes weights that are on a grid as integers, with the scale of each channel.

    Between activations that are rounded, onnxruntime would round float ones anew, to one scale
    for all channels.
    """
    from onnx import helper, numpy_helper

    found = {one.name: one for one in graph.initializer}
    nodes: list[Any] = []
    replaced = set()
    for node in graph.node:
        kernel = found.get(node.input[1]) if len(node.input) > 1 else None
        axis = {"Conv": 0, "MatMul": 1}.get(node.op_type)
        array = None if kernel is None else numpy_helper.to_array(kernel)
        steps = None
        if axis is not None and array is not None and array.dtype == np.float32:
            others = tuple(one for one in range(array.ndim) if one != axis)
            largest = np.maximum(np.abs(array).max(others, keepdims=True), 1e-30)
            for top in {2 ** (bits - 1) - 1, 127}:
                exact = array / largest * top
                if np.abs(exact - np.round(exact)).max() < 1e-3:
                    steps, scale = np.round(exact).astype("int8"), largest.ravel() / top
        if steps is not None:
            names = [
                f"{node.name}/{part}" for part in ("steps", "scale", "zero", "float")
            ]
            zero = np.zeros(len(scale), "int8")
            arrays = (steps, scale.astype("float32"), zero)
            for name, value in zip(names[:3], arrays, strict=True):
                graph.initializer.append(numpy_helper.from_array(value, name))
            replaced.add(node.input[1])
            node.input[1] = names[3]
            nodes.append(
                helper.make_node("DequantizeLinear", names[:3], names[3:], axis=axis)
            )
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    kept = [
        one for one in graph.initializer if one.name in used or one.name not in replaced
    ]
    fields: list[tuple[Any, list]] = [(graph.node, nodes), (graph.initializer, kept)]
    for field, values in fields:
        copies = [type(one).FromString(one.SerializeToString()) for one in values]
        del field[:]
        field.extend(copies)


def _erfc(ctx: Any, node: Any, name: str, args: Any) -> None:
    """Has erfc(x) as 1 - erf(x), right to the last bits of 1: what the exact gelu needs."""
    import onnx

    (x,), output, dtype = node.input, node.output[0], ctx.get_dtype(node.output[0])
    shape = ctx.get_shape(output)
    numbers = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    ctx.remove_node(node.name)
    one = ctx.make_const(f"{name}/one", np.array(1, numbers)).output[0]
    erf = ctx.make_node("Erf", [x], shapes=[shape], dtypes=[dtype]).output[0]
    ctx.make_node(
        "Sub", [one, erf], outputs=[output], name=name, shapes=[shape], dtypes=[dtype]
    )


def _name_free_sizes(model: Any) -> None:
    """Calls the size of the batch "batch" where it is free, and others by their tensor."""
    for tensor in (*model.graph.input, *model.graph.output):
        for axis, size in enumerate(tensor.type.tensor_type.shape.dim):
            if not size.HasField("dim_value"):
                size.dim_param = f"{tensor.name}_{axis}" if axis else "batch"


def _without_operation(graph: Any) -> Iterator[tuple[str, str]]:
    """Yields operation and name of each node that ONNX does not have, as TensorFlow has."""
    import onnx

    for node in graph.node:
        if not onnx.defs.has(node.op_type, node.domain):
            yield node.op_type, node.name
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _without_operation(attribute.g)


def _layer(place: str) -> str:
    """Returns where in the model a node is, without what the export put before it."""
    place = re.sub("^(?:Stateful)?PartitionedCall(?:_[0-9]+)?/", "", place)
    return place.rpartition("/")[0]
