"""The benchmarks measure what they say, as far as a CPU can tell."""

import json
import sys

import pytest
import torch
from support import ROOT, load_script
from torch.utils.flop_counter import FlopCounterMode

from swinv2_mm.datasets import ShapesSpec, write_shapes

FOLDER = ROOT / 'benchmarks'
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
CASE = dict(
    arch='tiny',
    window=4,
    size='64x64',
    batch=2,
    mode='inference',
    dtype='float32',
    compile=False,
    device='cpu',
    attn_backend='auto',
)


@pytest.fixture
def benchmark():
    pytest.importorskip('triton', reason='Triton exists for Linux only')
    return load_script(FOLDER / 'attention.py')


@pytest.fixture
def backbone():
    return load_script(FOLDER / 'backbone.py')


@pytest.fixture
def run(backbone, tmp_path, monkeypatch):
    """Measure a small image with more arguments; the file that it writes is ``found.json``."""

    def call(*arguments):
        small = '--sizes 32x32 --windows 2 --dtypes float32 --rounds 1 --peers'
        file = tmp_path / 'found.json'
        monkeypatch.setattr(sys, 'argv', ['backbone.py', *small.split(), *arguments, '--json', str(file)])
        backbone.main()
        return json.loads(file.read_text())

    return call


def test_the_floor_counts_the_products_of_the_blocks(backbone):
    """All but the patch embedding and merging, as torch's own counter sees them. Prevents: a floor too high or low."""
    model = backbone.build('ours', 'tiny', (64, 64), 4).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(backbone.images_of(CASE))
    tokens, C = 2 * 16 * 16, 96
    around = tokens * 48 * C + sum(tokens // 4**i * 8 * (C * 2 ** (i - 1)) ** 2 for i in (1, 2, 3))
    # The position bias: offsets x (2 coordinates to 512 hidden to the heads); the last stage's map is 2 x 2 tokens.
    around += sum(
        depth * offsets * 512 * (2 + heads)
        for depth, offsets, heads in ((2, 49, 3), (2, 49, 6), (6, 49, 12), (2, 9, 24))
    )
    products, _ = backbone.products(CASE)
    assert 2 * (around + sum(count * M * K * N for count, M, K, N in products)) == counter.get_total_flops()


def test_backbones_take_turns_and_one_that_fails_is_left_out(backbone):
    """Prevents: a peer that cannot take a size ending a run of hours, or ratios of different turns."""
    found = backbone.take_turns(['ours', 'huggingface', 'microsoft'], dict(CASE, mode='training'), 2)
    assert {name: len(taken) for name, taken in found['seconds'].items()} == {'ours': 2, 'huggingface': 2}
    assert list(found['gib']) == ['ours', 'huggingface']
    assert found['failed'] == {'microsoft': "ModuleNotFoundError: No module named 'models'"}
    ratios = load_script(FOLDER / 'backbone_report.py').times_of_ours(
        dict(seconds={'ours': [1.0, 4.0, 2.0], 'huggingface': [3.0, 4.0, 4.0]})
    )
    assert ratios == {'huggingface': 2.0}


def test_a_backbone_that_is_killed_is_left_out(backbone):
    """Prevents: a benchmark that waits for a process that ran out of memory."""
    worker = backbone.Worker('ours', CASE)
    worker.warm_up()
    assert worker.call() > 0
    worker._process.kill()
    worker._process.wait()
    assert worker.call() is None
    assert 'its process ended' in worker.failed
    worker.stop()


def test_a_peak_is_that_of_a_call(backbone):
    """In a process of its own, a larger image takes more. Prevents: the memory of the imports, or of nothing."""
    small, large = (
        backbone.take_turns(['ours'], dict(CASE, size=size), 0)['gib']['ours'] for size in ('64x64', '512x512')
    )
    assert 0 <= small < 0.05 < large < 0.5


def test_a_run_goes_on_where_it_was_stopped(run):
    """Prevents: hours measured again, or measured cases lost."""
    found = []
    for more, modes in (([], ['inference']), (['--resume'], ['inference', 'training'])):
        found.append(run(*more, '--modes', *modes)['rows'])
        assert [row['mode'] for row in found[-1]] == modes
    assert found[1][0] == found[0][0]


def test_what_does_not_fit_the_time_is_named(run):
    """Bug: a run of ten minutes ends without a word about what it has not measured."""
    found = run('--minutes', '0', '--modes', 'inference', 'training')
    assert found['rows'] == []
    assert found['left_out'] == ['tiny w2 1x32x32 float32 inference', 'tiny w2 1x32x32 float32 training']


def test_what_was_measured_elsewhere_is_not_continued(backbone, run, tmp_path):
    """Prevents: two machines in one table; or the loss of the version of a peer that is left out now."""
    file = tmp_path / 'found.json'
    here = backbone.about()
    file.write_text(json.dumps(dict(rows=[], about=here | dict(cpu='another', timm='1.0'))))
    with pytest.raises(SystemExit, match=r'found\.json was measured with cpu another\.'):
        run('--resume', '--modes', 'inference')
    file.write_text(json.dumps(dict(rows=[], about=here | dict(timm='1.0'))))
    assert run('--resume', '--modes', 'inference')['about'] == here | dict(timm='1.0')


def test_both_ways_do_the_same_job_and_one_that_fails_is_left_out(benchmark, monkeypatch, capsys):
    """On a small padded map, shifted along one axis, and printed. Bug: times of two different things, or a kernel that
    does not compile ends a run on a machine that is lent by the hour."""
    case = benchmark.Case(1, 7, 3, 2, 16, 4)
    rows = benchmark.measure(case, torch.float32, DEVICE, 1)
    assert [row['way'] for row in rows] == ['sdpa', 'triton']
    for row in rows:
        assert row['forward'] > 0 and row['forward and backward'] > 0 and row['failed'] is None
        assert row['error'] < 1e-5 and row['gradient_error'] < 1e-5
    monkeypatch.setattr('swinv2_mm.models.attention.fused_window_attention', lambda *_: 1 / 0)
    plain, broken = benchmark.measure(case, torch.float32, DEVICE, 1)
    assert plain['forward'] > 0 and broken['forward'] is None
    assert broken['failed'] == 'ZeroDivisionError: division by zero'
    rows = [dict(dtype='float32', window=4, stage=0, **row) for row in (plain, broken)]
    benchmark.show(dict(rows=rows, size='7x3', batch=1, about=benchmark.about(triton='triton'), command='a command'))
    printed = capsys.readouterr().out
    assert 'triton: ZeroDivisionError' in printed and 'a command' in printed


def test_the_times_of_a_backbone_are_those_of_all_its_blocks(benchmark):
    """By hand. Bug: a stage counts once for six blocks, or a stage that failed counts as no time."""
    times = {'sdpa': 4.0, 'triton': 1.0}
    rows = [
        {'dtype': 'float16', 'window': 8, 'stage': stage, 'way': way, 'forward': ms, 'forward and backward': 3 * ms}
        for way, ms in times.items()
        for stage in range(4)
    ]
    rows[-1]['forward and backward'] = None
    alike = {'window': 8, 'dtype': 'float16'}
    assert benchmark.compared(rows) == [
        alike | {'pass': 'forward', 'sdpa_ms': 48.0, 'triton_ms': 12.0},
        alike | {'pass': 'forward and backward', 'sdpa_ms': 144.0, 'triton_ms': None},
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_it_says_so(benchmark, monkeypatch):
    """Prevents: a traceback, or numbers of the interpreter."""
    monkeypatch.setattr(sys, 'argv', ['attention.py'])
    with pytest.raises(SystemExit, match='measures on a CUDA GPU, and there is none'):
        benchmark.main()


@pytest.mark.parametrize('head', ['upernet', 'maskrcnn'])
def test_starts_differ_in_the_backbone_alone(head, tmp_path):
    """Heads, data, rates and schedule of all starts are the same; no part has a rate of its own.

    Bug: a comparison of starts that compares budgets, or another start than it says.
    """
    pytest.importorskip(
        {'upernet': 'mmseg', 'maskrcnn': 'mmdet'}[head], reason='the framework of these heads is absent'
    )
    benchmark = load_script(FOLDER / 'from_scratch.py')
    built = {
        start: benchmark.config(head, start, 3, 200, 40, tmp_path, str(tmp_path))
        for start in ('v1', 'scratch', 'microsoft', 'epoch_8.pth')
    }
    backbones = {start: cfg.model.pop('backbone') for start, cfg in built.items()}
    first = built['v1']
    assert all(cfg._cfg_dict == first._cfg_dict for cfg in built.values())
    assert first.randomness.seed == 3 and first.train_dataloader.dataset.indices == 40
    assert first.param_scheduler[-1].end == first.train_cfg.max_iters == 200
    assert not any('lr_mult' in value for value in first.optim_wrapper.paramwise_cfg.custom_keys.values())
    assert backbones['v1'].type.endswith('.SwinTransformer')
    assert backbones['scratch'].from_scratch and not backbones['microsoft'].from_scratch
    assert 'from_scratch' not in backbones['epoch_8.pth']
    assert backbones['epoch_8.pth'].init_cfg.checkpoint == 'epoch_8.pth'
    for backbone in backbones.values():
        assert backbone.drop_path_rate == 0


@pytest.mark.filterwarnings('ignore')
def test_starts_are_compared_run_after_run(tmp_path, monkeypatch, capsys):
    """Two runs of one process end with their numbers in the file; those that the file has are not repeated.

    Bug: a benchmark whose settings mmengine refuses, or whose second run writes into the removed folder of the first.
    """
    pytest.importorskip('mmseg', reason='the framework of these heads is absent')
    benchmark = load_script(FOLDER / 'from_scratch.py')
    write_shapes(ShapesSpec(num_train=4, num_val=2), tmp_path / 'shapes')
    results = tmp_path / 'results.json'
    command = f'from_scratch.py --heads upernet --seeds 0 --iterations 2 --data {tmp_path / "shapes"} --json {results}'
    for starts in ('v1 scratch', 'scratch v1'):
        monkeypatch.setattr(sys, 'argv', [*command.split(), '--starts', *starts.split()])
        benchmark.main()
    written = json.loads(results.read_text())
    assert [run['start'] for run in written['runs']] == ['v1', 'scratch'] and written['about']['torch']
    assert capsys.readouterr().out.count('v1') == 2


def test_the_table_of_starts_has_means_and_all_seeds(capsys):
    """Bug: a mean over other runs than those it names."""
    benchmark = load_script(FOLDER / 'from_scratch.py')
    same = dict(head='upernet', start='v1', iterations=400, pictures=0)
    other = dict(same, start='scratch', seed=0, mIoU=50.0)
    benchmark.print_table([dict(same, seed=1, mIoU=30.0), dict(same, seed=0, mIoU=20.0), other])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if 'upernet' in line]
    assert rows == [
        ['upernet', 'v1', 'all', '400', 'mIoU', '25.0', '20.0', '30.0'],
        ['upernet', 'scratch', 'all', '400', 'mIoU', '50.0', '50.0'],
    ]
