"""The fit stage: levels of every group for themselves, each column weighted by its importance."""

import numpy as np

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.compute.levels import FloatArray
from elutq_cli.pipeline.layout import Layout
from elutq_cli.reference import Array
from elutq_formats.block_kind import FREE16, BlockKind
from elutq_formats.hlq import HLQTensor


def fit(
    weights: FloatArray, hessian: Array | None, layout: Layout, backend: Backend, kind: BlockKind = FREE16
) -> HLQTensor:
    """Quantize a matrix group by group, each column weighted by its diagonal element of the Hessian if there is one.

    Args:
        weights: (rows, columns) float32.
        hessian: (columns, columns) float32, X^T X of the inputs up to a factor, or None: all columns count the same.
        layout: how it is to be stored.
        backend: runs the inner loop.
        kind: what half scales and centers are rounded to, from ``layout.settle`` of the whole matrix.
    """
    importance = None
    if hessian is not None:
        # Where no input of a group is ever used, any levels do as well; the weights' own are as good as others.
        by_group = backend.arrays.fetch(hessian.diagonal()).reshape(-1, layout.group_size)
        importance = np.where(by_group.any(axis=1, keepdims=True), by_group, np.float32(1)).reshape(-1)
    half_scales, centers, codes = backend.loops.fit_groups(weights, layout.bits, layout.group_size, importance, kind)
    return HLQTensor(half_scales, centers, codes, layout.group_size, kind)
