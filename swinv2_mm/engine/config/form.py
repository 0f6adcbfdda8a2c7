"""Check the form of a config: parts are dicts or lists as the runner expects, and come together."""

from mmengine.config import Config

from swinv2_mm.errors import UserError

_DICTS = (
    'model train_cfg val_cfg test_cfg optim_wrapper auto_scale_lr default_hooks randomness env_cfg log_processor '
    'visualizer data_preprocessor strategy tta_model'.split()
)
_TOGETHER = (
    ('train_dataloader', 'train_cfg', 'optim_wrapper'),
    ('val_dataloader', 'val_cfg', 'val_evaluator'),
    ('test_dataloader', 'test_cfg', 'test_evaluator'),
)


def check_form(cfg: Config) -> None:
    """Check that a config can be edited and looked up without surprises; a part at fault is a UserError."""
    for key in _DICTS:
        value = cfg.get(key)
        if value is not None and not isinstance(value, dict):
            raise UserError(f'{key}={value!r} must be a dict.')
    hooks = cfg.get('custom_hooks')
    if hooks is not None and not (isinstance(hooks, list | tuple) and all(isinstance(hook, dict) for hook in hooks)):
        raise UserError(f'custom_hooks={hooks!r} must be a list of dicts, each with a type.')
    for name, hook in (cfg.get('default_hooks') or {}).items():
        if hook is not None and not isinstance(hook, dict):
            raise UserError(f'default_hooks.{name}={hook!r} must be a dict with a type, or None.')
    if cfg.get('model') is None:
        raise UserError('the config has no model.')
    for group in _TOGETHER:
        there = [key for key in group if cfg.get(key) is not None]
        absent = [key for key in group if key not in there]
        if there and absent:
            raise UserError(
                f'the config has {" and ".join(there)}, but no {" and no ".join(absent)}; these belong together. Set '
                f'{", ".join(there)} to None to do without.'
            )
    if cfg.get('load_from') is not None and not (isinstance(cfg.load_from, str) and cfg.load_from):
        raise UserError(f'load_from={cfg.load_from!r} must be the path of a checkpoint.')
    policy_of(cfg)


def policy_of(cfg: Config) -> str | None:
    """Return ``bad_data`` of a config: ``'stop'`` (default); ``'skip'``, for training only, since metrics over fewer
    images are not comparable; or None, which leaves everything to the frameworks. Anything else is a UserError."""
    policy = cfg.get('bad_data', 'stop')
    if policy not in ('stop', 'skip', None):
        raise UserError(
            f"bad_data={policy!r}: corrupt samples stop the run ('stop'), or training takes others in their place "
            "('skip'); None leaves them unchecked."
        )
    return policy
