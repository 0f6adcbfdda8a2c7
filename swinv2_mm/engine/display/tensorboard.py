"""TensorBoard: a training logs its numbers there, besides the JSON lines that mmengine writes."""

from importlib.util import find_spec

from mmengine.config import Config

from swinv2_mm.errors import say


def log_to_tensorboard(cfg: Config) -> None:
    """Make a training log to TensorBoard, too; if it is not installed, say how to install it.

    A config whose visualizer names another place, as ``WandbVisBackend``, keeps it.
    """
    visualizer = cfg.get('visualizer') or {'type': 'Visualizer', 'vis_backends': [{'type': 'LocalVisBackend'}]}
    backends = visualizer.get('vis_backends') or []
    if any(str(backend.get('type')).endswith('TensorboardVisBackend') for backend in backends):
        return
    if find_spec('tensorboard') is None:
        say('TensorBoard is not installed, and this training does not log to it: pip install tensorboard')
        return
    cfg.visualizer = dict(visualizer, vis_backends=[*backends, {'type': 'TensorboardVisBackend'}])
