"""A module as an ONNX graph with a dynamic batch, height and width."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from swinv2_mm.compat import VERSION
from swinv2_mm.errors import UserError
from swinv2_mm.inference.export.translations import translations

NEEDS = ('onnx', 'onnxscript', 'onnxruntime')
OLDEST = (2, 9)
OPSET = 20
LARGEST_FILE = 2**31 - 2**20  # bytes; the format cannot hold more in one file


def check_packages() -> None:
    """Raise a UserError if the packages that an export needs are not there."""
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        raise UserError(
            f'the export to ONNX needs {", ".join(missing)}, which {"is" if len(missing) == 1 else "are"} not '
            "installed: pip install 'swinv2_mm[export]', or pip install " + ' '.join(missing) + '.'
        )
    if VERSION < OLDEST:
        raise UserError(
            f'the export to ONNX needs torch {OLDEST[0]}.{OLDEST[1]} or newer, and this is {torch.__version__}. '
            'Checkpoints do not depend on the version: export in an environment with a newer torch.'
        )


@contextmanager
def ready_to_trace(module: nn.Module) -> Iterator[None]:
    """Within it, attention takes its position bias and scale as constants, and a backend that exporters can see."""
    with ExitStack() as stack, torch.no_grad():
        for block in module.modules():
            attention = getattr(block, 'attn', None)
            if not hasattr(attention, 'position_bias'):
                continue
            table, scale = attention.position_bias(block.window_size).clone(), attention._scale().clone()
            put = {'position_bias': lambda window, table=table: table, '_scale': lambda scale=scale: scale}
            stack.enter_context(patch.multiple(attention, attn_backend='auto', attn_chunk=None, **put))
        yield


def backbone_of(module: nn.Module) -> Any:
    """The SwinV2 backbone of a module."""
    return next(m for m in module.modules() if hasattr(m, 'set_window_size'))


def example(module: nn.Module) -> Tensor:
    """Images to trace with: two, and on every map several windows along both axes, since torch.export bakes in a
    count of one."""
    backbone = backbone_of(module)
    largest = max(backbone.patch_size * 2**i * max(window) for i, window in enumerate(backbone.window_size))
    side = -(-largest // 32) * 64
    return torch.zeros(2, backbone.patch_embed.proj.in_channels, side + 160, side + 352)


def trace(module: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """``torch.export`` of a module of images ``(B, C, H, W)``, of any size; also of any batch but for a single one."""
    dynamic = torch.export.Dim.DYNAMIC
    sizes = {2: dynamic, 3: dynamic} if len(images) == 1 else {0: dynamic, 2: dynamic, 3: dynamic}
    with ready_to_trace(module):
        return torch.export.export(module, (images,), dynamic_shapes=(sizes,), strict=False)


def write_graph(
    module: nn.Module, images: Tensor, outputs: Sequence[str], metadata: dict[str, Any], path: Path
) -> None:
    """Write a module of images ``(B, C, H, W)`` as an ONNX file.

    Args:
        module: In evaluation.
        images: An example, see :func:`example`.
        outputs: The names of its results.
        metadata: Beside the graph; values that are no strings are written as JSON.
        path: The file.

    Raises:
        UserError: The weights do not fit in one file.
    """
    weights = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
    if weights > LARGEST_FILE:
        raise UserError(
            f'the weights take {weights / 2**30:.1f} GiB, and an ONNX file holds 2. Pass --half for half of it.'
        )
    with _quiet():
        program = torch.onnx.export(
            trace(module, images),
            dynamo=True,
            input_names=['images'],
            output_names=list(outputs),
            opset_version=OPSET,
            custom_translation_table=translations(),
            optimize=False,  # its rewriting takes as long as all the rest, and finds next to nothing here
            verbose=False,
        )
    assert program is not None
    model = _tidied(program.model)
    for key, value in metadata.items():
        model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    model.producer_name = 'swinv2_mm'
    foreign = sorted({f'{node.domain}::{node.op_type}' for node in model.graph.all_nodes() if node.domain})
    assert not foreign, f'not in the ONNX standard: {foreign}'
    program.save(str(path), external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what torch says of its own deprecations, and that there is no torchvision."""
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)


def _tidied(model: Any) -> Any:
    """A graph without functions, repetitions, and the paths of this machine, and with names for its sizes."""
    import onnx_ir
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants

    common.InlinePass()(model)
    fold_constants(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.IdentityEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    common.ClearMetadataAndDocStringPass()(model)
    images = model.graph.inputs[0]
    images.shape = onnx_ir.Shape([1 if images.shape[0] == 1 else 'batch', images.shape[1], 'height', 'width'])
    return model
