"""Converted weights are all there, and a file that does not fit is refused whole."""

import math
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from swinv2_mm import SwinTransformerV2
from swinv2_mm.checkpoints.convert import ConversionError, convert_state_dict, windows_of
from swinv2_mm.checkpoints.files import read_weights, write_weights

TOOL = Path(__file__).parents[2] / 'tools' / 'convert_ckpt.py'


def build():
    return SwinTransformerV2(embed_dims=16, depths=(1, 2), num_heads=(1, 2), out_indices=(0, 1))


def microsoft(model, windows=(16, 8), pretrained=(12, 6)):
    """What Microsoft's code would save: its containers, tables and classifier."""
    state = {}
    for key, value in model.state_dict().items():
        if key.startswith('stages.1.downsample'):
            key = key.replace('stages.1', 'layers.0')
        elif key.startswith(('norm0', 'norm1')):
            continue
        state[key.replace('stages.', 'layers.')] = value
    for i, (w, p) in enumerate(zip(windows, pretrained, strict=True)):
        c = math.log2(1 + 8 * (w - 1) / (p - 1)) / 3
        table = torch.linspace(-c, c, 2 * w - 1)
        for j in range((1, 2)[i]):
            prefix = f'layers.{i}.blocks.{j}.attn.'
            state[prefix + 'relative_coords_table'] = table.view(1, -1, 1, 1).expand(1, -1, 2 * w - 1, 2)
            state[prefix + 'relative_position_index'] = torch.zeros(w * w, w * w, dtype=torch.long)
    return state | {'norm.weight': torch.ones(32), 'norm.bias': torch.zeros(32), 'head.weight': torch.ones(5, 32),
                    'head.bias': torch.zeros(5)}


def test_microsoft_names_convert_bit_identically(randomize):
    """Every learned tensor arrives, unchanged. Prevents: a patch merging in the wrong stage, or lost weights."""
    model = randomize(build())
    converted = convert_state_dict(microsoft(model))
    expected = {k: v for k, v in model.state_dict().items() if not k.startswith(('norm0', 'norm1'))}
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], value) for key, value in expected.items())


def test_old_spelling_of_the_bias_mlp():
    """Some released files say rpe_mlp. Prevents: a random position bias."""
    model = build()
    old = {k.replace('cpb_mlp', 'rpe_mlp'): v for k, v in microsoft(model).items()}
    assert convert_state_dict(old).keys() == convert_state_dict(microsoft(model)).keys()


def test_windows_are_read_off_the_tables():
    """Prevents: the wrong normaliser for weights fine-tuned at a larger window."""
    assert windows_of(microsoft(build())) == ([16, 8], [12, 6])
    assert windows_of(build().state_dict()) is None


@pytest.mark.parametrize('change', ['extra', 'renamed', 'foreign', 'swin v1', 'empty'])
def test_unknown_keys_are_refused(change):
    """Prevents: a partial conversion that loads without a word."""
    state = microsoft(build())
    if change == 'extra':
        state['layers.0.blocks.0.attn.extra'] = torch.zeros(1)
    elif change == 'renamed':
        state['layers.0.blocks.0.attn.qkv.weights'] = state.pop('layers.0.blocks.0.attn.qkv.weight')
    elif change == 'foreign':
        state = {'conv1.weight': torch.zeros(1), 'layer1.0.bn1.weight': torch.zeros(1)}
    elif change == 'swin v1':
        state = {'layers.0.blocks.0.attn.relative_position_bias_table': torch.zeros(1)}
    else:
        state = {}
    words = {'extra': 'attn.extra', 'renamed': 'qkv.weights', 'foreign': 'conv1.weight', 'swin v1': 'this is Swin V1',
             'empty': 'none'}
    with pytest.raises(ConversionError, match=words[change]):
        convert_state_dict(state)


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path('executed'),)


@pytest.mark.parametrize('kind', ['text', 'truncated', 'malicious', 'absent', 'number'])
def test_files_that_are_no_checkpoints(kind, tmp_path, monkeypatch):
    """Each is refused with its name, and no code runs. Prevents: arbitrary code from a download."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'weights.pth'
    if kind == 'text':
        path.write_text('<html>not found</html>')
    elif kind == 'truncated':
        torch.save(dict(model=microsoft(build())), path)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == 'malicious':
        path.write_bytes(pickle.dumps(dict(model=Malicious())))
    elif kind == 'number':
        torch.save(3, path)
    with pytest.raises(ConversionError, match=r'weights\.pth'):
        read_weights(path)
    assert not Path('executed').exists()


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    """Prevents: half a file under the final name, and temporary files left behind."""
    def fail(content, file):
        Path(file).write_text('half')
        raise OSError('disk full')
    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(OSError, match='disk full'):
        write_weights({}, tmp_path / 'out.pth', {})
    assert list(tmp_path.iterdir()) == []


def test_command_line_end_to_end(tmp_path, randomize):
    """What the tool writes loads through init_cfg and gives the same features. Prevents: a file nothing can read."""
    model = randomize(build()).eval()
    torch.save(dict(model=microsoft(model)), tmp_path / 'ms.pth')
    run = lambda *args: subprocess.run(  # noqa: E731
        [sys.executable, str(TOOL), str(tmp_path / 'ms.pth'), str(tmp_path / 'ours.pth'), *args],
        capture_output=True, text=True)
    result = run()
    assert result.returncode == 0 and 'pretrained_window_sizes=[12, 6]' in result.stdout, result.stderr
    again = run()
    assert again.returncode == 2 and '--force' in again.stderr and 'Traceback' not in again.stderr
    loaded = SwinTransformerV2(embed_dims=16, depths=(1, 2), num_heads=(1, 2), out_indices=(0, 1),
                               init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'ours.pth')))
    loaded.init_weights()
    for key, value in model.state_dict().items():
        if not key.startswith(('norm0', 'norm1')):
            assert torch.equal(loaded.state_dict()[key], value), key
