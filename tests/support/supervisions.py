"""Tables of soft labels in which every row says whose it is."""

import numpy as np

from pipeline.data.loaders import Supervision
from pipeline.methods.sparse_labels import packed_width

NUM_CLASSES = 5


def supervision_of(beton, *, num_tables, by_view=True, top_k=0):
    """Rows of random 16 bits that begin with (table, sample index)."""
    rng = np.random.default_rng(11)
    tables = []
    for slot in range(num_tables):
        width = packed_width(top_k) if top_k else NUM_CLASSES
        bits = rng.integers(0, 2**16, (beton.num_samples, width), dtype=np.uint16)
        table = bits if top_k else bits.view(np.float16)
        table[:, 0], table[:, 1] = slot, np.arange(beton.num_samples)
        tables.append(table)
    return Supervision(
        soft_labels=tables,
        selected=rng.random(beton.num_samples) < 0.5,
        labels=beton.samples.labels,
        by_view=by_view,
        num_classes=NUM_CLASSES,
        top_k=top_k,
    )
