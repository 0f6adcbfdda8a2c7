"""swinv2_mm/compat.py: what stands in for functions of newer torch does what they do."""

import pytest
import torch

from swinv2_mm import compat


def test_an_operation_without_torchs_is_differentiated_alike(monkeypatch):
    """With integers among its arguments, an output without gradient. Bug: older torch trains with other gradients."""
    monkeypatch.setattr(compat, 'VERSION', (2, 1))

    @compat.custom_op('swinv2_mm_test::scaled', '(Tensor x, Tensor y, int[] sizes) -> (Tensor, Tensor)')
    def scaled(x, y, sizes):
        return x * y * sizes[0], x.detach().sum()

    def save(ctx, inputs, output):
        x, y, ctx.sizes = inputs
        ctx.save_for_backward(x, y)

    def gradients(ctx, grad, _):
        x, y = ctx.saved_tensors
        return grad * y * ctx.sizes[0], grad * x * ctx.sizes[0], None

    plain = scaled(torch.ones(2), torch.ones(2), [3])[0]
    assert torch.equal(plain, torch.full((2,), 3.0))
    scaled.register_autograd(gradients, setup_context=save)
    x, y = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x, y: scaled(x, y, [3])[0], (x, y))


@pytest.mark.parametrize('version', [(2, 1), compat.VERSION])
def test_autocast_is_found_by_either_way(version, monkeypatch):
    """Bug: on older torch bfloat16 is taken for float32, or the other way round."""
    monkeypatch.setattr(compat, 'VERSION', version)
    assert compat.autocast_dtype('cpu') is None
    with torch.autocast('cpu', torch.bfloat16):
        assert compat.autocast_dtype('cpu') == torch.bfloat16
        with torch.autocast('cpu', enabled=False):
            assert compat.autocast_dtype('cpu') is None


@pytest.mark.parametrize('kind', ['forward_pre', 'forward', 'full_backward'])
def test_hooks_on_every_module_are_seen(kind, monkeypatch):
    """Bug: fused code runs where somebody watches all modules, so that he sees none."""
    monkeypatch.delattr(compat._module, '_has_any_global_hook', raising=False)
    assert not compat.has_global_hook()
    handle = getattr(compat._module, f'register_module_{kind}_hook')(lambda *_: None)
    try:
        assert compat.has_global_hook()
    finally:
        handle.remove()


def test_the_norm_of_gradients_is_that_of_all_together(monkeypatch):
    monkeypatch.setattr(compat, 'VERSION', (2, 1))
    tensors = [torch.randn(3, 4), torch.randn(5)]
    expected = torch.cat([tensor.flatten() for tensor in tensors]).norm()
    torch.testing.assert_close(compat.total_norm(tensors), expected)
    assert compat.total_norm([]) == 0
