"""The Triton kernels of window attention; triton_attention.py launches them.

A window is never gathered: every kernel computes a slot's token in the map from the slot's number. Slots and windows
are numbered row by row, images one after another. A tile is some slots of one window and one head, padded to a power of
two. ``sh, sw`` is the shift, ``D`` is ``d`` padded to a power of two. Whatever changes with the image is an ordinary
argument and not specialised on, so that a new image size or window compiles nothing.
"""

import triton
import triton.language as tl

# As in unit_vectors: a shorter vector counts as zero.
MIN_NORM = tl.constexpr(1e-6)
LOG2_E = tl.constexpr(1.4426950408889634)
# The logit of a pair that may not attend; finite, since a tile may hold nothing else: -inf less -inf is NaN.
MASKED = tl.constexpr(-1e30)

GEOMETRY = ['tokens', 'nH', 'H', 'W', 'Wh', 'Ww', 'sh', 'sw']


@triton.jit
def _locate(slot, window, H, W, Wh, Ww, sh, sw):
    """What sits in the slots of a window.

    Along an axis the slots are regular ones, then padding, then those that the roll brought in from the start of the
    map; either of the last two may be missing. Each layout of a tile computes this anew, so it is kept short.

    Returns:
        token: Index in ``0 .. B * H * W - 1``, int64; anything where there is no token.
        region: Slots may attend to each other where these agree (window.py, ``WindowGroup.regions``); -1 is padding.
        place: Such that ``place[q] - place[k]`` numbers the offsets of the bias table, the middle one being 0.
    """
    rows, columns = tl.cdiv(H, Wh), tl.cdiv(W, Ww)
    top = window // columns % rows * Wh + sh
    left = window % columns * Ww + sw
    inside = slot < Wh * Ww
    slot = tl.minimum(slot, Wh * Ww - 1)
    # slot // Ww, exact while Wh * Ww**2 < 2**23 and free of overflow while Wh < 2**8.
    i = (slot * (8388608 // Ww + 1)) >> 23
    j = slot - i * Ww
    wraps_y, wraps_x = top + i >= rows * Wh, left + j >= columns * Ww
    y = top + i - tl.where(wraps_y, rows * Wh, 0)
    x = left + j - tl.where(wraps_x, columns * Ww, 0)
    region = tl.where(wraps_y, 1, 0) + tl.where(wraps_x, 2, 0)
    region = tl.where(inside & (y < H) & (x < W), region, -1)
    token = (window // (columns * rows)).to(tl.int64) * H * W + (y * W + x)
    return token, region, i * (2 * Ww - 1) + j


@triton.jit
def _load(ptr, token, step, region, d: tl.constexpr, D: tl.constexpr):
    """Channels of tokens that lie ``step`` numbers apart, ``(tokens, D)``; zero in padding."""
    channel = tl.arange(0, D)
    mask = (region >= 0)[:, None] & (channel < d)[None, :]
    return tl.load(ptr + (token * step)[:, None] + channel[None, :], mask=mask, other=0.0)


@triton.jit
def _store(ptr, token, step, region, value, d: tl.constexpr, D: tl.constexpr):
    """The inverse of :func:`_load`; nothing is written for padding."""
    channel = tl.arange(0, D)
    mask = (region >= 0)[:, None] & (channel < d)[None, :]
    tl.store(ptr + (token * step)[:, None] + channel[None, :], value.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _inverse_norm(x):
    """What scales the rows of ``x`` to length 1, in float32; 0 for rows shorter than MIN_NORM."""
    x = x.to(tl.float32)
    norm = tl.sqrt(tl.sum(x * x, axis=1))
    return tl.where(norm > MIN_NORM, 1 / tl.maximum(norm, MIN_NORM), 0.0)


@triton.jit
def _unit(x, inverse):
    """Rows of length 1 or 0, in float32; ``inverse`` from :func:`_inverse_norm`."""
    return x.to(tl.float32) * inverse[:, None]


@triton.jit
def _unit_gradient(unit, inverse, grad):
    """The gradient of x from that of its :func:`_unit`: what lies along x is lost."""
    return inverse[:, None] * (grad - unit * tl.sum(unit * grad, axis=1)[:, None])


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    """``a @ b`` in float32."""
    if INTERPRETED and a.dtype == tl.bfloat16:  # the interpreter would multiply the bit patterns
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _bias(table, place_q, place_k, Wh, Ww):
    """The bias of pairs of slots, times log2(e); ``table`` points at the head's."""
    return tl.load(table + (place_q - place_k + (Wh - 1) * (2 * Ww - 1) + Ww - 1)) * LOG2_E


@triton.jit
def _logits(a, b, factor_a, factor_b, bias, region_a, region_b, PRECISION: tl.constexpr):
    """``scale * cos + bias`` of every row of ``a`` with every row of ``b``, times log2(e) for ``exp2``.

    The factors divide by the lengths, and one of them holds ``scale * log2(e)``. They are applied to the product, not
    to its operands: what 16 bits hold is multiplied exactly, while unit vectors rounded to bfloat16 would put the
    logits off by up to scale / 2**8.
    """
    logits = _dot(a, tl.trans(b), PRECISION) * factor_a[:, None] * factor_b[None, :] + bias
    return tl.where(region_a[:, None] == region_b[None, :], logits, MASKED)


@triton.jit(do_not_specialize=GEOMETRY)
def forward_kernel(
    qkv, table, scale, out, lse, tokens, nH, H, W, Wh, Ww, sh, sw,
    d: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
):
    """A program: ``BLOCK`` queries of one window and head, past its keys in tiles of ``STEP`` with a running soft-max.

    Writes their outputs, and ``lse``, the soft-max's denominator as a power of 2, ``(nH, B * H * W)``.
    """
    N = Wh * Ww
    tiles = tl.cdiv(N, BLOCK)
    tile = tl.program_id(0) % tiles
    head = tl.program_id(0) // tiles % nH
    window = tl.program_id(0) // (tiles * nH)
    table += head * (2 * Wh - 1) * (2 * Ww - 1)
    step = 3 * nH * d

    token, region, place = _locate(tile * BLOCK + tl.arange(0, BLOCK), window, H, W, Wh, Ww, sh, sw)
    q = _load(qkv + head * d, token, step, region, d, D)
    factor = _inverse_norm(q) * (tl.load(scale + head) * LOG2_E)
    highest = tl.full((BLOCK,), MASKED, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    mixed = tl.zeros((BLOCK, D), tl.float32)
    for start in range(0, N, STEP):
        token_k, region_k, place_k = _locate(start + tl.arange(0, STEP), window, H, W, Wh, Ww, sh, sw)
        k = _load(qkv + (nH + head) * d, token_k, step, region_k, d, D)
        v = _load(qkv + (2 * nH + head) * d, token_k, step, region_k, d, D)
        bias = _bias(table, place[:, None], place_k[None, :], Wh, Ww)
        logits = _logits(q, k, factor, _inverse_norm(k), bias, region, region_k, PRECISION)
        # Where all so far was masked, the sums hold nonsense of weight exp2(MASKED - highest) = 0.
        higher = tl.maximum(highest, tl.max(logits, axis=1))
        shrink = tl.exp2(highest - higher)
        probs = tl.exp2(logits - higher[:, None])
        total = total * shrink + tl.sum(probs, axis=1)
        mixed = mixed * shrink[:, None] + _dot(probs.to(v.dtype), v, PRECISION)
        highest = higher
    _store(out + head * d, token, nH * d, region, mixed / total[:, None], d, D)
    tl.store(lse + head * tokens + token, highest + tl.log2(total), mask=region >= 0)


@triton.jit(do_not_specialize=['windows', 'chunks', *GEOMETRY])
def forward_window_kernel(
    qkv, table, scale, out, lse, windows, chunks, tokens, nH, H, W, Wh, Ww, sh, sw,
    d: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):
    """As :func:`forward_kernel`, where a tile is a whole window.

    A program owns a head, whose bias it keeps, and goes past one window in ``chunks``.
    """
    head = tl.program_id(0) % nH
    slot = tl.arange(0, BLOCK)
    _, _, place = _locate(slot, 0, H, W, Wh, Ww, sh, sw)
    bias = _bias(table + head * (2 * Wh - 1) * (2 * Ww - 1), place[:, None], place[None, :], Wh, Ww)
    factor = tl.load(scale + head) * LOG2_E
    step = 3 * nH * d
    for window in range(tl.program_id(0) // nH, windows, chunks):
        token, region, _ = _locate(slot, window, H, W, Wh, Ww, sh, sw)
        q = _load(qkv + head * d, token, step, region, d, D)
        k = _load(qkv + (nH + head) * d, token, step, region, d, D)
        v = _load(qkv + (2 * nH + head) * d, token, step, region, d, D)
        logits = _logits(q, k, _inverse_norm(q) * factor, _inverse_norm(k), bias, region, region, PRECISION)
        highest = tl.max(logits, axis=1)
        probs = tl.exp2(logits - highest[:, None])
        total = tl.sum(probs, axis=1)
        mixed = _dot(probs.to(v.dtype), v, PRECISION)
        _store(out + head * d, token, nH * d, region, mixed / total[:, None], d, D)
        tl.store(lse + head * tokens + token, highest + tl.log2(total), mask=region >= 0)


@triton.jit(do_not_specialize=GEOMETRY)
def backward_q_kernel(
    qkv, table, scale, out, lse, grad, grad_qkv, grad_scale, delta, tokens, nH, H, W, Wh, Ww, sh, sw,
    d: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
):
    """The gradients of ``BLOCK`` queries, and the scale's from them; same programs as :func:`forward_kernel`.

    Leaves ``delta``, the product of each output with its gradient, ``(nH, B * H * W)``, to the other kernels.
    """
    N = Wh * Ww
    tiles = tl.cdiv(N, BLOCK)
    tile = tl.program_id(0) % tiles
    head = tl.program_id(0) // tiles % nH
    window = tl.program_id(0) // (tiles * nH)
    table += head * (2 * Wh - 1) * (2 * Ww - 1)
    step = 3 * nH * d

    token, region, place = _locate(tile * BLOCK + tl.arange(0, BLOCK), window, H, W, Wh, Ww, sh, sw)
    q = _load(qkv + head * d, token, step, region, d, D)
    o = _load(out + head * d, token, nH * d, region, d, D)
    do = _load(grad + head * d, token, nH * d, region, d, D)
    along = tl.sum(o.to(tl.float32) * do.to(tl.float32), axis=1)
    tl.store(delta + head * tokens + token, along, mask=region >= 0)
    row_lse = tl.load(lse + head * tokens + token, mask=region >= 0, other=float('inf'))
    inverse = _inverse_norm(q)
    unit = _unit(q, inverse)
    factor = tl.load(scale + head)
    grad_unit = tl.zeros((BLOCK, D), tl.float32)
    for start in range(0, N, STEP):
        token_k, region_k, place_k = _locate(start + tl.arange(0, STEP), window, H, W, Wh, Ww, sh, sw)
        k = _load(qkv + (nH + head) * d, token_k, step, region_k, d, D)
        v = _load(qkv + (2 * nH + head) * d, token_k, step, region_k, d, D)
        inverse_k = _inverse_norm(k)
        bias = _bias(table, place[:, None], place_k[None, :], Wh, Ww)
        logits = _logits(q, k, inverse * (factor * LOG2_E), inverse_k, bias, region, region_k, PRECISION)
        probs = tl.exp2(logits - row_lse[:, None])
        grad_logits = probs * (_dot(do, tl.trans(v), PRECISION) - along[:, None])
        grad_unit += _dot(grad_logits.to(k.dtype), _unit(k, inverse_k).to(k.dtype), PRECISION)
    _store(grad_qkv + head * d, token, step, region, _unit_gradient(unit, inverse, factor * grad_unit), d, D)
    tl.store(grad_scale + tl.program_id(0), tl.sum(unit * grad_unit))


@triton.jit(do_not_specialize=GEOMETRY)
def backward_kv_kernel(
    qkv, table, scale, lse, grad, grad_qkv, delta, tokens, nH, H, W, Wh, Ww, sh, sw,
    d: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
):
    """The gradients of ``BLOCK`` keys and values, past the queries in tiles of ``STEP``; keys are rows here."""
    N = Wh * Ww
    tiles = tl.cdiv(N, BLOCK)
    tile = tl.program_id(0) % tiles
    head = tl.program_id(0) // tiles % nH
    window = tl.program_id(0) // (tiles * nH)
    table += head * (2 * Wh - 1) * (2 * Ww - 1)
    step = 3 * nH * d

    token, region, place = _locate(tile * BLOCK + tl.arange(0, BLOCK), window, H, W, Wh, Ww, sh, sw)
    k = _load(qkv + (nH + head) * d, token, step, region, d, D)
    v = _load(qkv + (2 * nH + head) * d, token, step, region, d, D)
    inverse = _inverse_norm(k)
    unit = _unit(k, inverse)
    factor = tl.load(scale + head)
    grad_unit = tl.zeros((BLOCK, D), tl.float32)
    grad_v = tl.zeros((BLOCK, D), tl.float32)
    for start in range(0, N, STEP):
        token_q, region_q, place_q = _locate(start + tl.arange(0, STEP), window, H, W, Wh, Ww, sh, sw)
        q = _load(qkv + head * d, token_q, step, region_q, d, D)
        do = _load(grad + head * d, token_q, nH * d, region_q, d, D)
        q_lse = tl.load(lse + head * tokens + token_q, mask=region_q >= 0, other=float('inf'))
        along = tl.load(delta + head * tokens + token_q, mask=region_q >= 0, other=0.0)
        inverse_q = _inverse_norm(q)
        bias = _bias(table, place_q[None, :], place[:, None], Wh, Ww)
        logits = _logits(k, q, inverse * (factor * LOG2_E), inverse_q, bias, region, region_q, PRECISION)
        probs = tl.exp2(logits - q_lse[None, :])
        grad_v += _dot(probs.to(do.dtype), do, PRECISION)
        grad_logits = probs * (_dot(v, tl.trans(do), PRECISION) - along[None, :])
        grad_unit += _dot(grad_logits.to(q.dtype), _unit(q, inverse_q).to(q.dtype), PRECISION)
    grad_k = _unit_gradient(unit, inverse, factor * grad_unit)
    _store(grad_qkv + (nH + head) * d, token, step, region, grad_k, d, D)
    _store(grad_qkv + (2 * nH + head) * d, token, step, region, grad_v, d, D)


@triton.jit(do_not_specialize=['windows', 'chunks', *GEOMETRY])
def backward_table_kernel(
    qkv, table, scale, lse, grad, grad_qkv, grad_scale, delta, grad_table, windows, chunks, tokens,
    nH, H, W, Wh, Ww, sh, sw,
    d: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):
    """The table's gradient: a program owns a head and a tile of pairs, and sums it over one window in ``chunks``.

    Only the sum is scattered into the compact table, so there are few atomic additions, but their order is not fixed.
    ``WHOLE``: the tile is all of the window, and the same pass gives the gradients of queries, keys, values and scale.
    """
    tiles = tl.cdiv(Wh * Ww, BLOCK)
    head = tl.program_id(0) % nH
    pair = tl.program_id(0) // nH % (tiles * tiles)
    chunk = tl.program_id(0) // (nH * tiles * tiles)
    table += head * (2 * Wh - 1) * (2 * Ww - 1)
    step = 3 * nH * d

    slot_q = pair // tiles * BLOCK + tl.arange(0, BLOCK)
    slot_k = pair % tiles * BLOCK + tl.arange(0, BLOCK)
    _, _, place_q = _locate(slot_q, 0, H, W, Wh, Ww, sh, sw)
    _, _, place_k = _locate(slot_k, 0, H, W, Wh, Ww, sh, sw)
    bias = _bias(table, place_q[:, None], place_k[None, :], Wh, Ww)
    factor = tl.load(scale + head)
    grad_bias = tl.zeros((BLOCK, BLOCK), tl.float32)
    grad_factor = tl.zeros((BLOCK,), tl.float32)
    for window in range(chunk, windows, chunks):
        token_q, region_q, _ = _locate(slot_q, window, H, W, Wh, Ww, sh, sw)
        token_k, region_k, _ = _locate(slot_k, window, H, W, Wh, Ww, sh, sw)
        q = _load(qkv + head * d, token_q, step, region_q, d, D)
        k = _load(qkv + (nH + head) * d, token_k, step, region_k, d, D)
        v = _load(qkv + (2 * nH + head) * d, token_k, step, region_k, d, D)
        do = _load(grad + head * d, token_q, nH * d, region_q, d, D)
        q_lse = tl.load(lse + head * tokens + token_q, mask=region_q >= 0, other=float('inf'))
        inverse_q = _inverse_norm(q)
        inverse_k = _inverse_norm(k)
        unit_q, unit_k = _unit(q, inverse_q), _unit(k, inverse_k)
        logits = _logits(q, k, inverse_q * (factor * LOG2_E), inverse_k, bias, region_q, region_k, PRECISION)
        probs = tl.exp2(logits - q_lse[:, None])
        grad_probs = _dot(do, tl.trans(v), PRECISION)
        if WHOLE:
            along = tl.sum(probs * grad_probs, axis=1)
        else:
            along = tl.load(delta + head * tokens + token_q, mask=region_q >= 0, other=0.0)
        grad_logits = probs * (grad_probs - along[:, None])
        grad_bias += grad_logits
        if WHOLE:
            grad_v = _dot(tl.trans(probs.to(do.dtype)), do, PRECISION)
            grad_logits = grad_logits.to(q.dtype)
            grad_unit_q = _dot(grad_logits, unit_k.to(q.dtype), PRECISION)
            grad_unit_k = _dot(tl.trans(grad_logits), unit_q.to(q.dtype), PRECISION)
            grad_factor += tl.sum(unit_q * grad_unit_q, axis=1)
            grad_q = _unit_gradient(unit_q, inverse_q, factor * grad_unit_q)
            grad_k = _unit_gradient(unit_k, inverse_k, factor * grad_unit_k)
            _store(grad_qkv + head * d, token_q, step, region_q, grad_q, d, D)
            _store(grad_qkv + (nH + head) * d, token_k, step, region_k, grad_k, d, D)
            _store(grad_qkv + (2 * nH + head) * d, token_k, step, region_k, grad_v, d, D)
    middle = (Wh - 1) * (2 * Ww - 1) + Ww - 1
    inside = (slot_q < Wh * Ww)[:, None] & (slot_k < Wh * Ww)[None, :]
    offset = head * (2 * Wh - 1) * (2 * Ww - 1) + place_q[:, None] - place_k[None, :] + middle
    tl.atomic_add(grad_table + offset, grad_bias, mask=inside, sem='relaxed')
    if WHOLE:
        tl.store(grad_scale + tl.program_id(0), tl.sum(grad_factor))


INTERPRETED = tl.constexpr(not isinstance(forward_kernel, triton.JITFunction))
