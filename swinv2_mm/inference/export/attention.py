"""Window attention in operators of the ONNX standard, for maps of any size.

torch's exporter meets attention as one operation, ``swinv2_mm::map_attention``, and calls :meth:`Attention.write` for
it. One gather brings the heads of all tokens into their windows, which is padding, shift, partition and transposition
at once, and one brings them back. Their indices, and the mask, are arithmetic on the sizes of the map: they exist once
for all blocks that share them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

# Added to logits that are masked: a power of two that float16 has. Logits are at most 100 + 16, so exp gives exactly 0.
MASKED = -8192.0
# As kernels/cosine_attention.py: the direction of a shorter vector consists of rounding errors.
MIN_NORM = 1e-6


class Axis(NamedTuple):
    """The windows along one axis of a map, as values of the graph."""

    count: Any  # of the windows
    tokens: Any  # (count * side,), the token in each slot; the last one in slots of padding
    regions: Any  # (count * side,), 0, 1 where the shift wrapped around, 2 for padding
    window: Any  # (length,), the window of each token
    inner: Any  # (length,), its slot there


class Plan(NamedTuple):
    """What all blocks share that have the same map, window, heads and shift."""

    gather: tuple[Any, Any, Any]  # the rows of queries, keys and values in windows, among the heads of all tokens
    back: Any  # for each head of each token its row in the windows
    mask: Any  # (nW, 1, N, N), 0 or MASKED
    slots: Any  # N as (1,)
    windows: Any  # the shape (B * nW, nH, N, d)
    logits: Any  # the shape (B, nW, nH, N, N)
    same: Any  # the shape (B * nW, nH, N, N)


class Attention:
    """Writes the nodes of ``swinv2_mm::map_attention``, whose arguments :meth:`write` takes.

    Args:
        op: onnxscript's operators of the opset.
    """

    def __init__(self, op: Any) -> None:
        self.op = op
        self.plans: dict[tuple, Plan] = {}

    def write(self, qkv, scale, table, size, window, shifted, attn_chunk, backend) -> Any:
        """``(B, Hp, Wp, 3, nH, d)`` to ``(B, H, W, nH, d)``: see kernels/attention_op.py."""
        op = self.op
        nH, d = int(qkv.shape[4]), int(qkv.shape[5])
        half = qkv.dtype.numpy() == np.float16
        key = (*map(str, qkv.shape), *map(_name, (*size, *window)), shifted, half)
        if key not in self.plans:
            self.plans[key] = self._plan(qkv, size, window, shifted, nH, half)
        plan = self.plans[key]
        batch = op.Shape(qkv, start=0, end=1)
        rows = op.Reshape(qkv, self._vector(batch, -1, d))  # the heads of each token: (B, Hp * Wp * 3 * nH, d)
        q, k, v = (op.Reshape(op.Gather(rows, index, axis=1), plan.windows) for index in plan.gather)
        q, k = self._unit(q, half, scale), self._unit(k, half)
        logits = op.Add(op.MatMul(q, op.Transpose(k, perm=[0, 1, 3, 2])), self._bias(table, window, plan, half))
        logits = op.Reshape(op.Add(op.Reshape(logits, plan.logits), plan.mask), plan.same)
        out = op.MatMul(op.Softmax(logits, axis=-1), v)  # (B * nW, nH, N, d)
        out = op.Gather(op.Reshape(out, self._vector(batch, -1, d)), plan.back, axis=1)  # (B, H * W * nH, d)
        return op.Reshape(out, self._vector(batch, *size, nH, d))

    def _unit(self, x: Any, half: bool, scale: Any = None) -> Any:
        """Rows scaled to length 1, or to ``scale``, ``(nH, 1, 1)``; computed in float32."""
        op = self.op
        wide = op.Cast(x, to=1) if half else x
        norm = op.Max(op.ReduceL2(wide, self._ints(-1), keepdims=1), op.Constant(value_float=MIN_NORM))
        unit = op.Div(wide, norm) if scale is None else op.Mul(wide, op.Div(scale, norm))
        return op.Cast(unit, to=10) if half else unit

    def _bias(self, table: Any, window: Any, plan: Plan, half: bool) -> Any:
        """The table of the largest window, ``(nH, 2 Ph - 1, 2 Pw - 1)``, for all pairs of slots: ``(nH, N, N)``."""
        op = self.op
        nH, rows, cols = map(int, table.shape)
        Ph, Pw = (rows + 1) // 2, (cols + 1) // 2
        down, right = (np.arange(side)[:, None] - np.arange(side) + side - 1 for side in (Ph, Pw))
        offsets = down[:, None, :, None] * cols + right[None, :, None, :]  # (Ph, Pw, Ph, Pw)
        bias = op.Gather(op.Reshape(table, self._ints(nH, -1)), self._constant(offsets), axis=1)
        bias = op.Cast(bias, to=10) if half else bias
        # A bias depends on the offset alone: the first slots of the largest window are a smaller one.
        bias = op.Slice(bias, self._ints(0, 0, 0, 0), self._vector(*window, *window), self._ints(1, 2, 3, 4))
        return op.Reshape(bias, self._vector(nH, plan.slots, plan.slots))

    def _plan(self, qkv: Any, size: Any, window: Any, shifted: bool, nH: int, half: bool) -> Plan:
        op = self.op
        B, Hp, Wp = (op.Squeeze(op.Shape(qkv, start=i, end=i + 1)) for i in range(3))
        H, W, Wh, Ww = map(self._scalar, (*size, *window))
        down, right = self._axis(Hp, H, Wh, shifted), self._axis(Wp, W, Ww, shifted)
        windows, slots, heads = op.Mul(down.count, right.count), op.Mul(Wh, Ww), self._constant(np.arange(nH))

        def over_slots(rows: Any, cols: Any) -> Any:
            rows = op.Reshape(rows, self._vector(down.count, 1, Wh, 1))
            cols = op.Reshape(cols, self._vector(1, right.count, 1, Ww))
            return op.Reshape(op.Add(rows, cols), self._vector(windows, 1, slots))

        tokens = over_slots(op.Mul(down.tokens, Wp), right.tokens)  # (nW, 1, N)
        q = op.Add(op.Mul(tokens, self._int(3 * nH)), op.Unsqueeze(heads, self._ints(1)))
        q = op.Reshape(q, self._ints(-1))
        of_window = op.Mul(slots, self._int(nH))  # the rows of one
        rows = op.Add(op.Mul(down.window, op.Mul(right.count, of_window)), op.Mul(down.inner, Ww))
        cols = op.Add(op.Mul(right.window, of_window), right.inner)
        back = op.Add(op.Unsqueeze(rows, self._ints(1, 2)), op.Unsqueeze(cols, self._ints(0, 2)))
        back = op.Reshape(op.Add(back, op.Mul(heads, slots)), self._ints(-1))
        regions = over_slots(op.Mul(down.regions, self._int(4)), right.regions)
        differ = op.Not(op.Equal(op.Transpose(regions, perm=[0, 2, 1]), regions))
        masked, zero = (op.Cast(op.Constant(value_float=value), to=10 if half else 1) for value in (MASKED, 0.0))
        mask = op.Where(differ, masked, zero)
        return Plan(
            gather=(q, op.Add(q, self._int(nH)), op.Add(q, self._int(2 * nH))),
            back=back,
            mask=op.Unsqueeze(mask, self._ints(1)),
            slots=self._vector(slots),
            windows=self._vector(op.Mul(B, windows), nH, slots, int(qkv.shape[5])),
            logits=self._vector(B, windows, nH, slots, slots),
            same=self._vector(op.Mul(B, windows), nH, slots, slots),
        )

    def _axis(self, whole: Any, length: Any, side: Any, shifted: bool) -> Axis:
        """The windows of ``side`` along an axis of ``whole`` tokens, of which ``length`` are wanted back."""
        op, one = self.op, self._int(1)
        count = op.Div(op.Sub(op.Add(whole, side), one), side)
        end = op.Mul(count, side)
        slots, wanted = op.Range(self._int(0), end, one), op.Range(self._int(0), length, one)
        if shifted:  # by half a window, but not where a single one sees everything
            shift = op.Mul(op.Div(side, self._int(2)), op.Min(op.Sub(count, one), one))
            ahead = op.Add(slots, shift)
            tokens, at = op.Mod(ahead, end), op.Mod(op.Sub(op.Add(wanted, end), shift), end)
        else:
            ahead, tokens, at = slots, slots, wanted
        padding = op.Mul(op.Cast(op.GreaterOrEqual(tokens, whole), to=7), self._int(2))
        wrapped = op.Cast(op.GreaterOrEqual(ahead, end), to=7)
        window = op.Div(at, side)
        return Axis(
            count=count,
            tokens=op.Min(tokens, op.Sub(whole, one)),
            regions=op.Max(padding, wrapped),
            window=window,
            inner=op.Sub(at, op.Mul(window, side)),
        )

    # --- constants and sizes, which are int or values of the graph ---

    def _int(self, number: int) -> Any:
        return self.op.Constant(value_int=number)

    def _ints(self, *numbers: int) -> Any:
        return self.op.Constant(value_ints=list(numbers))

    def _constant(self, array: np.ndarray) -> Any:
        from onnx import numpy_helper

        return self.op.Constant(value=numpy_helper.from_array(np.ascontiguousarray(array)))

    def _scalar(self, size: Any) -> Any:
        return self._int(size) if isinstance(size, int) else size

    def _vector(self, *sizes: Any) -> Any:
        """``(n,)`` of sizes that are int, or values of rank 0 or 1."""
        parts = [self._ints(n) if isinstance(n, int) else self.op.Reshape(n, self._ints(1)) for n in sizes]
        return parts[0] if len(parts) == 1 else self.op.Concat(*parts, axis=0)


def _name(size: Any) -> Any:
    return size if isinstance(size, int) else size.name
