"""Which detections count as right, and what is wrong with the others."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from support import load_script
from support.scenes import CLASSES, coco_evaluation, scene

from swinv2_mm.engine.display.mistakes.matching import CORRECT, KINDS, Objects, confusion, evaluated, judged
from swinv2_mm.engine.display.mistakes.precision import average_precision, best_threshold, compact, joined

SCENES = [scene(seed) for seed in range(40)]


def outcome_of(truth, found, kind='bbox', score_thr=0.3):
    return judged(truth, found, kind, evaluated(truth, found, kind), score_thr)


@pytest.mark.parametrize('score_thr', [0.0, 0.3, 0.6])
@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_right_and_wrong_are_those_of_pycocotools(kind, score_thr):
    """Also with crowds, and if only the counted detections exist. Bug: a crowd counts as missed or as found, an object
    is given to a detection that is not counted, or masks are matched by their boxes."""
    evaluation = coco_evaluation(SCENES, kind, score_thr)
    entries = [each for each in evaluation.evalImgs if each]
    for index, (truth, found) in enumerate(SCENES):
        outcome = outcome_of(truth, found, kind, score_thr)
        mine = [each for each in entries if each['image_id'] == index]
        right = sum(int(((each['dtMatches'][0] > 0) & ~each['dtIgnore'][0]).sum()) for each in mine)
        wrong = sum(int(((each['dtMatches'][0] == 0) & ~each['dtIgnore'][0]).sum()) for each in mine)
        lost = sum(int(((each['gtMatches'][0] == 0) & (each['gtIgnore'] == 0)).sum()) for each in mine)
        assert outcome.found.count(CORRECT) == outcome.truth.count(CORRECT) == right
        assert sum(each in KINDS for each in outcome.found) == wrong
        assert sum(each in KINDS for each in outcome.truth) == lost
        assert outcome.truth.count('') == truth.ignored.sum()


def overlap(one, other):
    """The IoU of two boxes, each x, y, width and height."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


def slowly(truth, found, score_thr):
    """Greedy matching and TIDE's rules, written down once more: kinds of the detections and of the annotations."""
    order = sorted((i for i, s in enumerate(found.scores) if s >= score_thr), key=lambda i: -found.scores[i])
    taken, kinds, blamed = {}, {}, {}
    for i in order:
        same = [j for j, label in enumerate(truth.labels) if label == found.labels[i] and j not in taken.values()]
        best = max(same, key=lambda j: overlap(found.boxes[i], truth.boxes[j]), default=None)
        if best is not None and overlap(found.boxes[i], truth.boxes[best]) >= 0.5:
            taken[i], kinds[i] = best, 'correct'
    for i in order:
        if i in taken:
            continue
        ious = {j: overlap(found.boxes[i], box) for j, box in enumerate(truth.boxes)}
        same = {j: iou for j, iou in ious.items() if truth.labels[j] == found.labels[i]}
        other = {j: iou for j, iou in ious.items() if j not in same}
        near, beside = max(same.values(), default=0), max(other.values(), default=0)
        if 0.1 <= near <= 0.5:
            kinds[i] = 'poor overlap'
            blamed.setdefault(max(same, key=same.get), kinds[i])
        elif beside >= 0.5:
            kinds[i] = 'confused'
            blamed.setdefault(max(other, key=other.get), kinds[i])
        else:
            kinds[i] = 'double' if near > 0.5 else 'false'
    of_truth = ['correct' if j in taken.values() else blamed.get(j, 'missed') for j in range(len(truth.labels))]
    return [kinds.get(i, '') for i in range(len(found.labels))], of_truth


@pytest.mark.parametrize('score_thr', [0.0, 0.5])
def test_kinds_of_mistakes_follow_tide(score_thr):
    """By a slow loop. Bug: a detection at the right place with the wrong class is called false, its object missed."""
    seen = Counter()
    for seed in range(150):
        truth, found = scene(seed, crowds=False)
        outcome = outcome_of(truth, found, score_thr=score_thr)
        assert (outcome.found, outcome.truth) == slowly(truth, found, score_thr)
        seen.update(outcome.found + outcome.truth)
    assert all(seen[kind] > 10 for kind in (CORRECT, *KINDS))


def corners(box):
    return [*box[:2], *(box[:2] + box[2:])]


def test_the_matrix_is_mmdetections_where_objects_are_apart():
    """At most one detection for each object. Bug: rows and columns are exchanged, or the background is."""
    import mmdet

    tool = load_script(Path(mmdet.__file__).parent / '.mim' / 'tools' / 'analysis_tools' / 'confusion_matrix.py')
    rng = np.random.default_rng(0)
    theirs, ours = np.zeros((CLASSES + 1, CLASSES + 1)), np.zeros((CLASSES + 1, CLASSES + 1), int)
    for _ in range(60):
        places = np.stack(np.meshgrid(range(4), range(3)), -1).reshape(-1, 2) * 30.0
        annotated, detected = rng.random((2, 12)) < 0.7
        boxes = np.concatenate([places, np.full((12, 2), 20.0)], axis=1)
        labels = rng.integers(0, CLASSES, 12)
        moved = boxes + rng.uniform(-1, 1, boxes.shape)
        said = np.where(rng.random(12) < 0.7, labels, rng.integers(0, CLASSES, 12))
        scores = rng.uniform(0.1, 1, 12)
        truth = Objects(labels[annotated], boxes[annotated], ignored=np.zeros(annotated.sum(), bool))
        found = Objects(said[detected], moved[detected], scores=scores[detected])
        ours += confusion(truth, found, outcome_of(truth, found), CLASSES)
        instances = [
            {'bbox': corners(box), 'bbox_label': label} for box, label in zip(truth.boxes, truth.labels, strict=True)
        ]
        result = {'labels': found.labels, 'bboxes': np.array([corners(box) for box in found.boxes])}
        result['scores'] = found.scores
        tool.analyze_per_img_dets(theirs, instances, {k: torch.tensor(v) for k, v in result.items()}, score_thr=0.3)
    confused = ours[:-1, :-1].sum(1) - ours.diagonal()[:-1]
    theirs[:-1, -1] -= confused  # it counts them as missed, too
    assert (ours == theirs).all() and (confused > 5).all() and (ours[-1, :-1] > 5).all() and (ours[:-1, -1] > 5).all()


def test_columns_of_the_matrix_add_up_to_the_detections():
    """And the diagonal to what was found. Bug: a tile says 144 confused, and the matrix shows six."""
    for truth, found in SCENES:
        outcome = outcome_of(truth, found)
        matrix = confusion(truth, found, outcome, CLASSES)
        for label in range(CLASSES):
            said = [kind for kind, each in zip(outcome.found, found.labels, strict=True) if kind and each == label]
            assert matrix[:, label].sum() == len(said) and matrix[label, label] == said.count(CORRECT)
        beside = matrix[:-1, :-1].sum() - matrix.diagonal().sum()
        assert beside == outcome.found.count('confused') and matrix[-1, -1] == 0


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_average_precision_is_that_of_pycocotools(kind):
    """From matches of single pictures. Bug: the page and the metric of the run disagree."""
    evaluation = coco_evaluation(SCENES, kind)
    precision = evaluation.eval['precision'][:, :, :, 0, -1]
    ours = average_precision(joined(compact(evaluated(*each, kind)) for each in SCENES), CLASSES + 1)
    assert ours[:-1] == pytest.approx(np.stack([precision.mean((0, 1)), precision[0].mean(0)], 1), abs=1e-9)
    assert np.isnan(ours[-1]).all()


def test_the_best_threshold_has_the_largest_f1():
    """Bug: the page recommends a score at which fewer objects are found, and more is false."""
    arrays = joined(compact(evaluated(*each, 'bbox')) for each in SCENES)
    score, f1, precision, recall = best_threshold(arrays)

    def counted(score_thr):
        outcomes = [outcome_of(*each, score_thr=score_thr) for each in SCENES]
        right = sum(each.found.count(CORRECT) for each in outcomes)
        given = sum(sum(map(bool, each.found)) for each in outcomes)
        objects = sum(sum(map(bool, each.truth)) for each in outcomes)
        return 2 * right / (given + objects), right / max(1, given), right / objects

    assert counted(score - 1e-6) == pytest.approx((f1, precision, recall), abs=1e-9)
    assert f1 >= max(counted(each)[0] for each in np.linspace(0, 0.95, 40)) - 1e-9
    assert best_threshold(joined([])) is None


def test_pictures_without_objects_or_detections():
    """Bug: the first empty picture ends a test of hours."""
    truth, found = next(each for each in SCENES if len(each[0].labels) > 2)
    nothing = Objects(np.zeros(0, int), np.zeros((0, 4)), [], np.zeros(0), np.zeros(0, bool))
    for kind in ('bbox', 'segm'):
        assert set(outcome_of(truth, nothing, kind).truth) <= {'missed', ''}
        assert set(outcome_of(nothing, found, kind).found) <= {'false', ''}
        assert outcome_of(nothing, nothing, kind).found == []
