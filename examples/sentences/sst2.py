"""SST-2: sentences of film reviews, and whether they praise."""

import csv

import keras_hub
import numpy as np
import tensorflow as tf

LENGTH = 40  # word pieces; 27 % of the sentences have more, and are cut


def load(folder, words=8000, most=None):
    """Returns inputs and labels of each part, and the number of word pieces.

    Args:
        folder: of train.tsv, dev.tsv and test.tsv: a sentence, a tab, 0 or 1.
        words: how many word pieces to learn from train.tsv, at most.
        most: how many sentences of each part to keep; `None` for all.
    """
    parts = {}
    for part in ("train", "dev", "test"):
        with open(folder / f"{part}.tsv", encoding="utf-8") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[:most]
        parts[part] = [text for text, _ in rows], np.array([int(y) for _, y in rows])
    vocabulary = keras_hub.tokenizers.compute_word_piece_vocabulary(
        tf.data.Dataset.from_tensor_slices(parts["train"][0]),
        words,
        lowercase=True,
        reserved_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    )
    tokenizer = keras_hub.models.BertTokenizer(vocabulary, lowercase=True)
    inputs_of = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, LENGTH)
    data = {part: (inputs_of(np.array(x)), y) for part, (x, y) in parts.items()}
    return data, len(vocabulary)
