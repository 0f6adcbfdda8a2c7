"""One file decides who computes."""

import re
from pathlib import Path

import pytest

from swinv2_mm import models

FOLDER = Path(models.__file__).parent
# Questions about the device, the processor, autocast, compilers, tracers and dispatch modes.
QUESTION = re.compile(
    r'\b(is_cpu|is_cuda|is_meta|is_compiling|is_dynamo_compiling|is_tracing|is_exporting|is_autocast_enabled|'
    r'get_cpu_capability|_get_current_dispatch_mode|peek_interpreter_stack|_is_functional_tensor)\b'
)
# cache.py lies below the kernels; cpp.py loads the library for this processor, and checks what it hands over;
# pretrained_windows.py reads numbers out of a state_dict; usable.py answers for choose.py what a GPU can compute.
MAY_ASK = {'kernels/choose.py', 'kernels/gpu/usable.py', 'cache.py', 'kernels/cpp.py', 'pretrained_windows.py'}


@pytest.mark.parametrize(
    'path', sorted(FOLDER.rglob('*.py')), ids=lambda path: path.relative_to(FOLDER).with_suffix('').as_posix()
)
def test_only_one_file_asks_who_computes(path):
    """Prevents: a second place that decides, so that a new device or tracer is known in one and not in the other."""
    asks = set(QUESTION.findall(path.read_text()))
    if path.relative_to(FOLDER).as_posix() in MAY_ASK:
        assert asks
    else:
        assert asks == set()
