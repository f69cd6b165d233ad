"""COCO's mean average precision of a KerasHub detector."""

import contextlib
import io

import numpy as np
from shapes.drawing import SHAPES


def mean_ap(model, images, truth):
    """Returns COCO's mAP, the mean over IoU from 0.5 to 0.95."""
    from pycocotools import coco, cocoeval

    def rows(boxes, labels, scores):
        """Image, x, y, width, height, score and class of each box."""
        boxes = np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], -1)
        found = np.nonzero(labels >= 0)
        return np.c_[found[0], boxes[found], scores[found], labels[found]]

    # Not predict: its graph knows no batch size, which the decoder needs.
    said = model.decode_predictions(model(images, training=False), images)
    said = rows(*(np.array(said[key]) for key in ("boxes", "labels", "confidence")))
    if not len(said):
        return 0.0
    known, ids = coco.COCO(), [{"id": i} for i in range(len(images))]
    annotations = [
        {"id": n, "image_id": int(i), "bbox": [*box], "area": box[2] * box[3],
         "category_id": int(kind), "iscrowd": 0}
        for n, (i, *box, _, kind) in enumerate(rows(*truth.values(), truth["labels"]), 1)
    ]  # fmt: skip
    kinds = [{"id": k, "name": name} for k, name in enumerate(SHAPES)]
    known.dataset = {"images": ids, "categories": kinds, "annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):
        known.createIndex()
        judged = cocoeval.COCOeval(known, known.loadRes(said), "bbox")
        judged.evaluate(), judged.accumulate(), judged.summarize()
    return max(judged.stats[0], 0.0)
