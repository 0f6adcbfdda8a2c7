"""The table of released checkpoints agrees with its sources and with itself."""

import dataclasses
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from swinv2_mm.checkpoints import catalog
from swinv2_mm.checkpoints.catalog import RELEASES, find
from swinv2_mm.checkpoints.layouts import LAYOUTS
from swinv2_mm.checkpoints.sources import published_hash
from swinv2_mm.sizes import VARIANTS

STORAGE = 'https://github.com/SwinTransformer/storage/releases/download/v2.0.0/'
OPENMMLAB = 'https://download.openmmlab.com/mmclassification/v0/swin-v2/'
PYTORCH = 'https://download.pytorch.org/models/'

# Written out, where the module composes: Microsoft's file, timm's name, Hugging Face's name, MMPretrain's file.
SPELLINGS = [
    row.split()
    for row in """
swinv2_tiny_patch4_window8_256                        swinv2_tiny_window8_256.ms_in1k
    swinv2-tiny-patch4-window8-256                        swinv2-tiny-w8_3rdparty_in1k-256px_20220803-e318968f
swinv2_small_patch4_window8_256                       swinv2_small_window8_256.ms_in1k
    swinv2-small-patch4-window8-256                       swinv2-small-w8_3rdparty_in1k-256px_20220803-b01a4332
swinv2_base_patch4_window8_256                        swinv2_base_window8_256.ms_in1k
    swinv2-base-patch4-window8-256                        swinv2-base-w8_3rdparty_in1k-256px_20220803-8ff28f2b
swinv2_tiny_patch4_window16_256                       swinv2_tiny_window16_256.ms_in1k
    swinv2-tiny-patch4-window16-256                       swinv2-tiny-w16_3rdparty_in1k-256px_20220803-9651cdd7
swinv2_small_patch4_window16_256                      swinv2_small_window16_256.ms_in1k
    swinv2-small-patch4-window16-256                      swinv2-small-w16_3rdparty_in1k-256px_20220803-b707d206
swinv2_base_patch4_window16_256                       swinv2_base_window16_256.ms_in1k
    swinv2-base-patch4-window16-256                       swinv2-base-w16_3rdparty_in1k-256px_20220803-5a1886b7
swinv2_base_patch4_window12_192_22k                   swinv2_base_window12_192.ms_in22k
    swinv2-base-patch4-window12-192-22k                   pretrain/swinv2-base-w12_3rdparty_in21k-192px_20220803-f7dc9763
swinv2_large_patch4_window12_192_22k                  swinv2_large_window12_192.ms_in22k
    swinv2-large-patch4-window12-192-22k                  pretrain/swinv2-large-w12_3rdparty_in21k-192px_20220803-d9073fee
swinv2_base_patch4_window12to16_192to256_22kto1k_ft   swinv2_base_window12to16_192to256.ms_in22k_ft_in1k
    swinv2-base-patch4-window12to16-192to256-22kto1k-ft   swinv2-base-w16_in21k-pre_3rdparty_in1k-256px_20220803-8d7aa8ad
swinv2_large_patch4_window12to16_192to256_22kto1k_ft  swinv2_large_window12to16_192to256.ms_in22k_ft_in1k
    swinv2-large-patch4-window12to16-192to256-22kto1k-ft  swinv2-large-w16_in21k-pre_3rdparty_in1k-256px_20220803-c40cbed7
swinv2_base_patch4_window12to24_192to384_22kto1k_ft   swinv2_base_window12to24_192to384.ms_in22k_ft_in1k
    swinv2-base-patch4-window12to24-192to384-22kto1k-ft   swinv2-base-w24_in21k-pre_3rdparty_in1k-384px_20220803-44eb70f8
swinv2_large_patch4_window12to24_192to384_22kto1k_ft  swinv2_large_window12to24_192to384.ms_in22k_ft_in1k
    swinv2-large-patch4-window12to24-192to384-22kto1k-ft  swinv2-large-w24_in21k-pre_3rdparty_in1k-384px_20220803-3b36c165
""".strip()
    .replace('\n    ', ' ')
    .splitlines()
]
TORCHVISION = {'swin_v2_t': 'swin_v2_t-b137f0e2', 'swin_v2_s': 'swin_v2_s-637d8ceb', 'swin_v2_b': 'swin_v2_b-781e5279'}
# timm's table of deprecated names.
OLD = {
    'swinv2_base_window12_192_22k': 'swinv2_base_patch4_window12_192_22k',
    'swinv2_base_window12to16_192to256_22kft1k': 'swinv2_base_patch4_window12to16_192to256_22kto1k_ft',
    'swinv2_base_window12to24_192to384_22kft1k': 'swinv2_base_patch4_window12to24_192to384_22kto1k_ft',
    'swinv2_large_window12_192_22k': 'swinv2_large_patch4_window12_192_22k',
    'swinv2_large_window12to16_192to256_22kft1k': 'swinv2_large_patch4_window12to16_192to256_22kto1k_ft',
    'swinv2_large_window12to24_192to384_22kft1k': 'swinv2_large_patch4_window12to24_192to384_22kto1k_ft',
}
FILES = [(release, file) for release in RELEASES.values() for file in release.files]


def expected():
    """(what a user may write, official name, layout) for everything that ``find`` must know."""
    for official, timm, hf, mm in SPELLINGS:
        model, mm_stem = timm.split('.')[0], mm.split('/')[-1]
        for layout, words in {
            'microsoft': (official, f'{official}.pth', f'{STORAGE}{official}.pth'),
            'timm': (timm, model, f'timm/{timm}', f'timm/{model}', f'hf://timm/{timm}'),
            'huggingface': (f'microsoft/{hf}', f'hf://microsoft/{hf}'),
            'mmpretrain': (mm_stem, f'{mm_stem}.pth', f'{OPENMMLAB}{mm}.pth', mm_stem.split('_2022')[0]),
        }.items():
            yield from ((word, official, layout) for word in words)
    for official, stem in TORCHVISION.items():
        yield from ((word, official, 'torchvision') for word in (official, stem, f'{stem}.pth', f'{PYTORCH}{stem}.pth'))
    for old, official in OLD.items():
        yield from ((word, official, 'timm') for word in (old, f'timm/{old}'))


def test_every_spelling_finds_its_own_file():
    """Whatever a code base calls a file finds that file of that release, and no word has two meanings. Bugs: a
    composed name differs by a letter from the published one; two rows claim a word and the later one wins silently."""
    words = list(expected())
    assert max(Counter(word for word, *_ in words).values()) == 1
    wrong = {}
    for word, official, layout in words:
        found = find(word)
        if found is None or (found[0].name, found[1].layout) != (official, layout) or found[1] not in found[0].files:
            wrong[word] = found
    assert not wrong
    claims = Counter(alias for _, file in FILES for alias in {file.location, *file.names})
    assert max(claims.values()) == 1
    # An official name may be an alias only of the file that it stands for.
    assert all(find(name) == (release, release.files[0]) for name, release in RELEASES.items())


def test_table_and_spellings_cover_each_other():
    """Every file of the table is reached by the list above, and the list names no other. Bug: a row is added, or lost,
    and no test looks at it."""
    assert {name for _, name, _ in expected()} == set(RELEASES)
    assert {find(word)[1].location for word, *_ in expected()} == {file.location for _, file in FILES}
    assert all(name == release.name for name, release in RELEASES.items())


@pytest.mark.parametrize(
    'word',
    [
        '',
        'swinv2',
        'tiny',
        'swin_v2',
        'Swin_V2_T',
        'SwinV2_tiny_patch4_window8_256',
        ' swin_v2_t',
        'swin_v2_t.pt',
        'swinv2_tiny_patch4_window8_256.bin',
        './swinv2_tiny_patch4_window8_256.pth',
        'swinv2_tiny_window8_256.ms_in22k',
        'swinv2_tiny_window8_256.',
        'microsoft/swinv2_tiny_patch4_window8_256',
        'timm/swinv2-tiny-patch4-window8-256',
        'hf://swinv2-tiny-patch4-window8-256',
        'swinv2_tiny_window8_256_22k',
        'swin_tiny_patch4_window7_224',
        'microsoft/swin-tiny-patch4-window7-224',
        'swin_t',
        'http://download.pytorch.org/models/swin_v2_t-b137f0e2.pth',
    ],
)
def test_anything_else_is_unknown(word):
    """A word that nobody published finds nothing. Bug: a near miss, a Swin V1 name or a local path is taken for a
    release, and the wrong weights get its windows."""
    assert find(word) is None


@pytest.mark.parametrize('release', RELEASES.values(), ids=RELEASES)
def test_windows_follow_the_published_rule(release):
    """Per stage, the window is the one in the name, no larger than the map; the normaliser is the own window, except
    after fine-tuning from 192 pixels, where it stays that of the 22K training. Bugs: 16 at the 8x8 map of stage 4,
    which rescales its position bias; a fine-tuned model normalised by its new window."""
    assert release.arch in VARIANTS
    match = re.fullmatch(
        r'swinv2_([a-z]+)_patch4_window(?:(\d+)to)?(\d+)_(?:(\d+)to)?(\d+)(_22k|_22kto1k_ft)?', release.name
    )
    if match:
        arch, first, last, first_size, last_size, suffix = match.groups()
        assert release.data == {None: 'ImageNet-1K', '_22k': 'ImageNet-22K'}.get(suffix, 'ImageNet-22K, then 1K')
    else:
        arch = {'swin_v2_t': 'tiny', 'swin_v2_s': 'small', 'swin_v2_b': 'base'}[release.name]
        first, last, first_size, last_size = None, 8, None, 256
        assert release.data == 'ImageNet-1K'

    def clipped(window, size):
        return tuple(min(int(window), int(size) // stride) for stride in (4, 8, 16, 32))

    assert (release.arch, release.image_size) == (arch, int(last_size))
    assert release.window_size == clipped(last, last_size)
    assert release.window_size[-1] <= release.image_size // 32
    assert release.pretrained_window_sizes == clipped(first or last, first_size or last_size)
    assert len(release.window_size) == len(VARIANTS[release.arch].depths)


def test_accuracies_are_the_published_ones():
    """Top-1 is the published one, and there is none without a 1K classifier. Bug: the two tables are mixed up, so that
    torchvision's own weights are listed with Microsoft's accuracy."""
    assert {name: release.top1 for name, release in RELEASES.items()} == {
        'swinv2_tiny_patch4_window8_256': 81.8,
        'swinv2_small_patch4_window8_256': 83.7,
        'swinv2_base_patch4_window8_256': 84.2,
        'swinv2_tiny_patch4_window16_256': 82.8,
        'swinv2_small_patch4_window16_256': 84.1,
        'swinv2_base_patch4_window16_256': 84.6,
        'swinv2_base_patch4_window12_192_22k': None,
        'swinv2_large_patch4_window12_192_22k': None,
        'swinv2_base_patch4_window12to16_192to256_22kto1k_ft': 86.2,
        'swinv2_large_patch4_window12to16_192to256_22kto1k_ft': 86.9,
        'swinv2_base_patch4_window12to24_192to384_22kto1k_ft': 87.1,
        'swinv2_large_patch4_window12to24_192to384_22kto1k_ft': 87.6,
        'swin_v2_t': 82.072,
        'swin_v2_s': 83.712,
        'swin_v2_b': 84.112,
    }


@pytest.mark.parametrize('file', [file for _, file in FILES], ids=lambda file: file.location.split('/')[-1])
def test_locations_are_safe_and_digests_match_their_names(file):
    """A location is an https URL or a repository on the hub, in a layout that can be converted, and a digest is the
    one in the file's name. Bugs: plain http, which anybody may tamper with; a digest of another row, with which every
    download is refused; a hub name without digest that claims one."""
    assert file.layout in LAYOUTS
    if file.location.startswith('hf://'):
        assert re.fullmatch(r'hf://[\w.-]+/[\w.-]+', file.location)
        assert published_hash(file.location) is None
    else:
        assert re.fullmatch(r'https://[\w./-]+\.pth', file.location)
        named = re.search(r'-([0-9a-f]{8})\.pth$', file.location)
        assert published_hash(file.location) == (named and named[1])


def test_digests_and_places_are_unique():
    """No two files share a digest or a place. Bug: a row is copied and only half of it edited."""
    digests = [digest for _, file in FILES if (digest := published_hash(file.location))]
    places = [file.location for _, file in FILES]
    assert len(digests) == len(set(digests)) == 15
    assert len(places) == len(set(places))


def test_entries_cannot_be_edited():
    """Releases and files are frozen. Bug: one caller corrects a window in place, and every later model gets it."""
    release, file = find('swin_v2_t')
    with pytest.raises(dataclasses.FrozenInstanceError):
        release.window_size = (7, 7, 7, 7)
    with pytest.raises(dataclasses.FrozenInstanceError):
        file.location = ''


def test_needs_only_the_standard_library():
    """The module alone runs without torch. Bug: a table of names takes seconds to import, or cannot be read by a tool
    in an environment without the stack."""
    code = (
        "import runpy, sys; before = set(sys.modules); runpy.run_path(sys.argv[1], run_name='catalog'); "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; print(*sorted(new - sys.stdlib_module_names))"
    )
    out = subprocess.run([sys.executable, '-c', code, catalog.__file__], capture_output=True, text=True, check=True)
    assert out.stdout.split() == []


def test_the_documented_table_is_the_catalogue():
    """Prevents: a page that tells people other windows than the code uses, or names that nothing finds."""
    page = (Path(__file__).parents[2] / 'docs' / 'checkpoints.md').read_text()
    rows = [
        [cell.strip(' `') for cell in line.strip('|').split('|')]
        for line in page.splitlines()
        if line.startswith('| `swin')
    ]
    assert [row[0] for row in rows] == list(RELEASES)
    for name, arch, size, windows, pretrained, data, top1, *elsewhere in rows:
        release = RELEASES[name]
        assert (arch, size, data) == (release.arch, str(release.image_size), release.data)
        assert windows == ', '.join(map(str, release.window_size))
        assert pretrained == ', '.join(map(str, release.pretrained_window_sizes))
        assert top1 == ('–' if release.top1 is None else str(release.top1))
        assert all(find(word)[0] is release for word in elsewhere if word != '–')
