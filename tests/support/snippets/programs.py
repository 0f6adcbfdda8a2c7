"""Programs of the documentation run in a process of their own, on files under the names that they use."""

import ast
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from functools import cache

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from support import ROOT, load_script
from swinv2_mm import SwinTransformerV2
from swinv2_mm.checkpoints.convert import export_state_dict

# Programs that need what is not among the test dependencies: they are compiled, and the names that they import from
# installed packages are looked up. Where the package is installed, they run.
ELSEWHERE = {'peft': 'adapters; not a dependency, and it installs accelerate and a hub client'}


def make_release(path):
    """Random weights in Microsoft's layout: a file of that name comes before a download."""
    torch.manual_seed(0)
    torch.save({'model': export_state_dict(SwinTransformerV2('tiny').state_dict(), 'microsoft')[0]}, path)


def make_converted(path):
    release = path.with_name('swinv2_tiny_patch4_window8_256')
    make_release(release)
    load_script(ROOT / 'tools' / 'convert_ckpt.py').main([str(release), str(path)])


def make_image(path):
    import numpy as np
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)).save(path)


def make_run(path):
    """The work dir of a run: its config and a checkpoint of random weights, with what a run says of its data."""
    import_scope = {'maskrcnn': 'mmdet', 'upernet': 'mmseg'}[path.parent.name.split('_')[0]]
    importlib.import_module(import_scope)
    cfg = Config.fromfile(ROOT / 'configs' / f'{path.parent.name}.py')
    path.parent.mkdir(parents=True, exist_ok=True)
    cfg.dump(path.parent / f'{path.parent.name}.py')
    with DefaultScope.overwrite_default_scope(import_scope):
        model = MODELS.build(cfg.model)
    model.init_weights()
    data = cfg.test_dataloader.dataset.metainfo
    meta = dict(dataset_meta={key: list(value) for key, value in data.items()}, cfg=cfg.pretty_text, epoch=26)
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)


# What programs read, by the names that they use, and what makes it.
MADE = {
    'swinv2_tiny_patch4_window8_256': make_release,
    'swinv2_t.safetensors': make_converted,
    'image.png': make_image,
    'work_dirs/maskrcnn_swinv2_t_shapes/epoch_26.pth': make_run,
    'work_dirs/upernet_swinv2_t_shapes/epoch_32.pth': make_run,
}


def furnish(text, folder):
    for name, make in MADE.items():
        path = folder / name
        if name in text and not path.exists():
            make(path)


def check_program(text, folder):
    """Run a program in a process of its own; it prints what the comment behind ``print`` says, if there is one."""
    missing = [
        name
        for name in ELSEWHERE
        if re.search(rf'^(from|import) {name}\b', text, re.M) and importlib.util.find_spec(name) is None
    ]
    if missing:
        return resolve(text, missing)
    furnish(text, folder)
    code, out, err = run(text, folder)
    assert code == 0, err[-2000:]
    printed = ', '.join(out.splitlines())
    for said in re.findall(r'print\(.*\)   *# (.*)', text):
        assert said in printed
    return None


# Forks for each program. Nothing of swinv2_mm is imported: that its names are found is what the programs show.
SERVER = """
import json, os, runpy, sys, traceback
import mmdet.apis, mmseg.apis, torch
for line in sys.stdin:
    folder = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(folder)
        for number, name in ((1, 'out'), (2, 'err')):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.environ['TORCH_HOME'] = folder + '/torch'
        code = 1
        try:
            runpy.run_path('program.py', run_name='__main__')
            code = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@cache
def server():
    """The process that programs are forked from, which has paid for the imports of other packages; it ends with us."""
    env = os.environ | dict(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, '-c', SERVER], env=env, stdin=pipe, stdout=pipe, text=True)


def run(text, folder):
    """Exit code and both outputs of a program."""
    (folder / 'program.py').write_text(text)
    print(json.dumps(str(folder)), file=server().stdin, flush=True)
    code = int(server().stdout.readline())
    return code, *((folder / name).read_text() for name in ('out', 'err'))


def resolve(text, missing):
    """Compile a program and look up what it imports from packages that are there."""
    tree = ast.parse(text)
    compile(tree, 'snippet', 'exec')
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split('.')[0] not in missing:
            module = importlib.import_module(node.module)
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []
    layers = {
        name.rpartition('.')[2]
        for name, layer in SwinTransformerV2('tiny').named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    named = re.search(r'target_modules=(\[.*?\])', text)
    assert named is None or set(ast.literal_eval(named[1])) <= layers
