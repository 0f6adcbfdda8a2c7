"""mmcv's operators as a GPU has them, on a CPU: kernels for float32 and float16, and an error for bfloat16.

The two that have no kernel for CPUs, multi-scale deformable attention and focal loss, are computed by torch; the models
are sent through them as on a GPU.
"""

from typing import Any

import torch
from torch import Tensor


def refuse(*tensors: Any) -> None:
    """As AT_DISPATCH_FLOATING_TYPES_AND_HALF."""
    if any(isinstance(tensor, Tensor) and tensor.dtype == torch.bfloat16 for tensor in tensors):
        raise RuntimeError('"kernel" not implemented for \'BFloat16\'')


def emulate(monkeypatch: Any) -> list[str]:
    """Emulate the operators; returns the list of their calls."""
    from mmcv.ops import focal_loss, multi_scale_deform_attn
    from mmdet.models.losses import focal_loss as mmdet_focal_loss

    calls: list[str] = []
    by_torch = multi_scale_deform_attn.multi_scale_deformable_attn_pytorch

    def attend(value, shapes, starts, locations, weights, im2col_step):
        refuse(value, locations, weights)
        calls.append(f'attention in {value.dtype}')
        return by_torch(value, shapes, locations, weights)

    def attend_backward(value, shapes, starts, locations, weights, grad, *grads, im2col_step):
        refuse(value, locations, weights, grad)
        with torch.enable_grad():
            inputs = [tensor.detach().requires_grad_() for tensor in (value, locations, weights)]
            out = by_torch(inputs[0], shapes, *inputs[1:])
            for grad_input, found in zip(grads, torch.autograd.grad(out, inputs, grad), strict=True):
                grad_input.copy_(found)

    def focal(input, target, weight, output, gamma, alpha):
        refuse(input, weight, output)
        calls.append(f'focal loss in {input.dtype}')
        output.copy_(focal_formula(input, target, gamma, alpha))

    def focal_backward(input, target, weight, grad_input, gamma, alpha):
        refuse(input, weight, grad_input)
        with torch.enable_grad():
            leaf = input.detach().requires_grad_()
            loss = focal_formula(leaf, target, gamma, alpha).sum()
            grad_input.copy_(torch.autograd.grad(loss, leaf)[0])

    def routed(value, shapes, locations, weights):
        sizes = shapes.prod(1)
        function = multi_scale_deform_attn.MultiScaleDeformableAttnFunction
        return function.apply(value, shapes, sizes.cumsum(0) - sizes, locations, weights, 64)

    def routed_focal(pred, target, weight=None, **options):
        label = torch.where(target.any(1), target.argmax(1), target.shape[1])  # from one-hot
        return mmdet_focal_loss.sigmoid_focal_loss(pred, label, weight, **options)

    monkeypatch.setattr(multi_scale_deform_attn.ext_module, 'ms_deform_attn_forward', attend)
    monkeypatch.setattr(multi_scale_deform_attn.ext_module, 'ms_deform_attn_backward', attend_backward)
    monkeypatch.setattr(focal_loss.ext_module, 'sigmoid_focal_loss_forward', focal)
    monkeypatch.setattr(focal_loss.ext_module, 'sigmoid_focal_loss_backward', focal_backward)
    monkeypatch.setattr(multi_scale_deform_attn, 'multi_scale_deformable_attn_pytorch', routed)
    monkeypatch.setattr(mmdet_focal_loss, 'py_sigmoid_focal_loss', routed_focal)
    return calls


def focal_formula(logits: Tensor, target: Tensor, gamma: float, alpha: float) -> Tensor:
    """Focal loss (arXiv 1708.02002, equation 5) of each logit ``(N, C)``; ``target`` is C for no class."""
    classes = logits.shape[1]
    hot = torch.nn.functional.one_hot(target, classes + 1)[:, :classes].to(logits.dtype)
    p = logits.sigmoid()
    p_t, alpha_t = hot * p + (1 - hot) * (1 - p), hot * alpha + (1 - hot) * (1 - alpha)
    return -alpha_t * (1 - p_t) ** gamma * p_t.clamp(min=1e-12).log()
