"""One step of SGD-G, Adam-G and PSI-SGD as Triton kernels: a row is read once, worked on in registers, written once.

What a kernel is given: ``programs[i]`` is the tensor that program i works on; ``sizes`` has a line of `SIZES`
integers a tensor (rows, fan-in, its first program, then strides: see `_offsets`); ``addresses`` has a line of
`ADDRESSES` a tensor (weight, gradient, momentum, second moment, step count). ``*_wide`` holds a row in three blocks, so
that fewer registers lie idle than in one of the next power of two; ``*_long`` are for rows that do not fit into
registers. Formulas: riembn/optim/reference.py.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

SIZES = tl.constexpr(10)  # the last unused
ADDRESSES = tl.constexpr(6)  # the last unused: every line starts on 16 bytes
SAFE_EXPONENT = tl.constexpr(24)  # as in riembn/optim/reference.py
SAFE_EXPONENT_FLOAT16 = tl.constexpr(8)
FAR = tl.constexpr(16777216.0)  # an angle beyond it says nothing in float32; any point of the circle does


@triton.jit
def _of_program(programs, sizes, addresses):
    """The tensor of this program: number of its block, its lines in the two tables."""
    tensor = tl.load(programs + tl.program_id(0)).to(tl.int64)
    size = sizes + tensor * SIZES
    return tl.program_id(0) - tl.load(size + 2), size, addresses + tensor * ADDRESSES


@triton.jit
def _pointer(address, column: tl.constexpr, TYPE: tl.constexpr, UNIT: tl.constexpr):
    pointer = tl.load(address + column).to(tl.pointer_type(TYPE))
    if UNIT > 1:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _fan_in(size, UNIT: tl.constexpr):
    return tl.multiple_of(tl.load(size + 1), UNIT)


@triton.jit
def _offsets(size, row, column, DENSE: tl.constexpr, UNIT: tl.constexpr):
    """Where entry ``column`` of row ``row`` lies; two strides each for rows and entries, where they need them."""
    if DENSE:
        return row * tl.multiple_of(tl.load(size + 5), UNIT) + column
    row_inner, entry_inner = tl.load(size + 3), tl.load(size + 6)
    row_at = row // row_inner * tl.load(size + 4) + row % row_inner * tl.load(size + 5)
    entry_at = column // entry_inner * tl.load(size + 7) + column % entry_inner * tl.load(size + 8)
    return row_at + entry_at


@triton.jit
def _begin(PLACE: tl.constexpr):
    """Let the next launch of the step begin once all programs of this one have."""
    if PLACE > 0:
        gdc_launch_dependents()


@triton.jit
def _end(PLACE: tl.constexpr):
    """Do not end before the launch before has, so that what follows the step finds all of it done."""
    if PLACE > 1:
        gdc_wait()


@triton.jit
def _goes_on(found_inf):
    """0 where the gradient scaler has found a gradient that is not finite: then nothing may change; else 1."""
    live = tl.full([], 1, tl.int64)
    if found_inf is not None:
        live = tl.where(tl.load(found_inf) == 0, live, 0)
    return live


@triton.jit
def _unscaled(g, grad_scale):
    g = g.to(tl.float32)
    if grad_scale is not None:
        g = g * tl.div_rn(1.0, tl.load(grad_scale).to(tl.float32))
    return g


@triton.jit
def _power_bits(largest):
    """Exponent field of the power of two that brings ``largest`` into [1/2, 1); it and its reciprocal are normal."""
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 0xFF
    return tl.maximum(253 - exponent, 1)


@triton.jit
def _power(bits):
    return (bits << 23).to(tl.float32, bitcast=True)


@triton.jit
def _cosine_sine(angle):
    """To one unit in the last place, whatever the angle: Triton's own are the hardware's approximations."""
    wide = tl.where(angle > FAR, FAR, angle).to(tl.float64)
    quarters = tl.floor(wide * 0.6366197466850281 + 0.5)
    # pi/2 in three parts, each a float32
    rest = wide - quarters * 1.5703125 - quarters * 4.837512969970703125e-4 - quarters * 7.549790126404332e-08
    x = rest.to(tl.float32)
    z = x * x
    sine = x + x * z * ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1)
    cosine = (
        1 - 0.5 * z + z * z * ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2)
    )
    quadrant = quarters.to(tl.int32) & 3
    odd = (quadrant & 1) != 0
    c = tl.where(odd, sine, cosine)
    s = tl.where(odd, cosine, sine)
    return tl.where((quadrant == 1) | (quadrant == 2), -c, c), tl.where(quadrant >= 2, -s, s)


@triton.jit
def _one_minus_power(log_base, t):
    """1 - base**t without cancellation."""
    z = -log_base * t
    near = z * (1 - z / 2 * (1 - z / 3 * (1 - z / 4 * (1 - z / 5 * (1 - z / 6 * (1 - z / 7 * (1 - z / 8)))))))
    return tl.where(z < 0.5, near, 1 - tl.exp(-z))


@triton.jit
def _clipped(norm, unscale, grad_clip):
    """What a tangent vector of norm ``norm`` is multiplied by to be unscaled and no longer than ``grad_clip``."""
    return tl.where(norm * unscale > grad_clip, grad_clip / norm, unscale)


@triton.jit
def _coefficients(length, clipped_norm, v, before, present, rate, decay_second, keep_second, eps, ADAM: tl.constexpr):
    """(a, b, c) with which w <- a y + b D and m <- a D + c y, D the new momentum of norm ``length``."""
    turn = length
    if ADAM:
        second = decay_second * before + keep_second * clipped_norm * clipped_norm
        tl.debug_barrier()  # every warp of a row reads v for itself, and none may read what another has written
        tl.store(v, second, mask=present)
        # with eps = 0 a row that never had a gradient stays where it is
        positive = second + eps > 0
        rate = tl.where(positive, tl.div_rn(rate, tl.sqrt_rn(tl.where(positive, second + eps, 1.0))), 0.0)
        turn = rate * length
    cosine, sine = _cosine_sine(turn)
    moves = tl.abs(turn) > 1e-18  # negative where the rate is: see maximize
    ratio = tl.where(moves, sine / tl.where(moves, turn, 1.0), 1.0)
    if ADAM:
        return cosine, -rate * ratio, length * sine
    return cosine, ratio, -turn * sine


@triton.jit
def _second_moment(address, row, present, ADAM: tl.constexpr):
    """Where that of a row stands, and its value, asked for before it is needed."""
    v = _pointer(address, 3, tl.float32, 1) + row
    before = 0.0
    if ADAM:
        before = tl.load(v, mask=present, other=0.0)
    return v, before


@triton.jit
def _rate(lr, address, log_decay, log_decay_second, live, LR_TENSOR: tl.constexpr, ADAM: tl.constexpr):
    """The learning rate, for Adam-G with the bias correction of the tensor's step count."""
    if LR_TENSOR:
        rate = tl.load(lr).to(tl.float32)
    else:
        rate = lr
    if ADAM:
        t = tl.load(tl.load(address + 4).to(tl.pointer_type(tl.float32)))
        t = tl.where(live > 0, t, 1.0)  # a first step that is skipped has count 0
        rate *= tl.sqrt_rn(_one_minus_power(log_decay_second, t)) / _one_minus_power(log_decay, t)
    return rate


@triton.jit
def manifold_step(
    programs, sizes, addresses, lr, grad_scale, found_inf, decay, keep, log_decay, decay_second, keep_second,
    log_decay_second, eps, grad_clip,
    W: tl.constexpr, G: tl.constexpr, ADAM: tl.constexpr, LR_TENSOR: tl.constexpr, CLIPPED: tl.constexpr,
    DENSE: tl.constexpr, UNIT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    PLACE: tl.constexpr,
):  # fmt: skip
    """SGD-G (``decay``: momentum) or Adam-G (``decay``: beta1, ``keep``: 1 - beta1) for BLOCK_ROWS rows a program."""
    block, size, address = _of_program(programs, sizes, addresses)
    _begin(PLACE)
    live = _goes_on(found_inf)
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_COLUMNS)
    present = row < tl.load(size) * live
    mask = present[:, None] & (column < _fan_in(size, UNIT))[None, :]
    at = _offsets(size, row[:, None], column[None, :], DENSE, UNIT)
    w_at = _pointer(address, 0, W, UNIT) + at
    m_at = _pointer(address, 2, tl.float32, UNIT) + at
    w = tl.load(w_at, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(_pointer(address, 1, G, UNIT) + at, mask=mask, other=0.0)
    m = tl.load(m_at, mask=mask, other=0.0)
    v, before = _second_moment(address, row, present, ADAM)
    rate = _rate(lr, address, log_decay, log_decay_second, live, LR_TENSOR, ADAM)

    g = _unscaled(g, grad_scale)
    square = tl.where(present, tl.sum(w * w, axis=1), 1.0)
    dead = square == 0  # no direction: the row stays, as if its gradient and momentum were zero
    square = tl.where(dead, 1.0, square)
    y = w * tl.div_rn(1.0, tl.sqrt_rn(square))[:, None]
    bits = _power_bits(tl.max(tl.abs(g), axis=1))
    h = g * _power(bits)[:, None]
    h -= tl.sum(y * h, axis=1)[:, None] * y
    h -= (
        tl.sum(y * h, axis=1)[:, None] * y
    )  # what rounding left, where the gradient is nearly along the weight
    norm = tl.sqrt_rn(tl.sum(h * h, axis=1))
    factor = tl.where(dead, 0.0, _clipped(norm, _power(254 - bits), grad_clip))
    kept = tl.where(dead, 0.0, decay)[:, None] * m
    if ADAM:
        d = kept + (keep * factor)[:, None] * h
    else:
        d = kept - (rate * factor)[:, None] * h
    if CLIPPED:
        length = tl.sqrt_rn(tl.sum(d * d, axis=1))
    else:
        bits = _power_bits(tl.max(tl.abs(d), axis=1))
        near = d * _power(bits)[:, None]
        length = tl.sqrt_rn(tl.sum(near * near, axis=1)) * _power(254 - bits)
    a, b, c = _coefficients(length, norm * factor, v, before, present, rate, decay_second, keep_second, eps, ADAM)
    tl.store(w_at, (a[:, None] * y + b[:, None] * d).to(W), mask=mask)
    tl.store(m_at, a[:, None] * d + c[:, None] * y, mask=mask)
    _end(PLACE)


@triton.jit
def _dot(x0, y0, x1, y1, x2, y2):
    return tl.sum(x0 * y0 + x1 * y1 + x2 * y2, axis=0)


@triton.jit
def _largest(x0, x1, x2):
    return tl.max(tl.maximum(tl.maximum(tl.abs(x0), tl.abs(x1)), tl.abs(x2)), axis=0)


@triton.jit
def manifold_step_wide(
    programs, sizes, addresses, lr, grad_scale, found_inf, decay, keep, log_decay, decay_second, keep_second,
    log_decay_second, eps, grad_clip,
    W: tl.constexpr, G: tl.constexpr, ADAM: tl.constexpr, LR_TENSOR: tl.constexpr, CLIPPED: tl.constexpr,
    DENSE: tl.constexpr, UNIT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    PLACE: tl.constexpr,
):  # fmt: skip
    """The same for one row a program, in three blocks of BLOCK_COLUMNS."""
    row, size, address = _of_program(programs, sizes, addresses)
    _begin(PLACE)
    live = _goes_on(found_inf)
    end = _fan_in(size, UNIT) * live
    column = tl.arange(0, BLOCK_COLUMNS)
    mask0, mask1, mask2 = column < end, BLOCK_COLUMNS + column < end, 2 * BLOCK_COLUMNS + column < end
    at0 = _offsets(size, row, column, DENSE, UNIT)
    at1 = _offsets(size, row, BLOCK_COLUMNS + column, DENSE, UNIT)
    at2 = _offsets(size, row, 2 * BLOCK_COLUMNS + column, DENSE, UNIT)
    w_at, g_at = _pointer(address, 0, W, UNIT), _pointer(address, 1, G, UNIT)
    m_at = _pointer(address, 2, tl.float32, UNIT)
    y0 = tl.load(w_at + at0, mask=mask0, other=0.0).to(tl.float32)
    y1 = tl.load(w_at + at1, mask=mask1, other=0.0).to(tl.float32)
    y2 = tl.load(w_at + at2, mask=mask2, other=0.0).to(tl.float32)
    h0 = tl.load(g_at + at0, mask=mask0, other=0.0)
    h1 = tl.load(g_at + at1, mask=mask1, other=0.0)
    h2 = tl.load(g_at + at2, mask=mask2, other=0.0)
    d0 = tl.load(m_at + at0, mask=mask0, other=0.0)
    d1 = tl.load(m_at + at1, mask=mask1, other=0.0)
    d2 = tl.load(m_at + at2, mask=mask2, other=0.0)
    v, before = _second_moment(address, row, live > 0, ADAM)
    rate = _rate(lr, address, log_decay, log_decay_second, live, LR_TENSOR, ADAM)

    h0, h1, h2 = _unscaled(h0, grad_scale), _unscaled(h1, grad_scale), _unscaled(h2, grad_scale)
    square = tl.where(live > 0, _dot(y0, y0, y1, y1, y2, y2), 1.0)
    dead = square == 0  # no direction: the row stays, as if its gradient and momentum were zero
    inverse = tl.div_rn(1.0, tl.sqrt_rn(tl.where(dead, 1.0, square)))
    y0, y1, y2 = y0 * inverse, y1 * inverse, y2 * inverse
    bits = _power_bits(_largest(h0, h1, h2))
    power = _power(bits)
    h0, h1, h2 = h0 * power, h1 * power, h2 * power
    along = _dot(y0, h0, y1, h1, y2, h2)
    h0, h1, h2 = h0 - along * y0, h1 - along * y1, h2 - along * y2
    along = _dot(y0, h0, y1, h1, y2, h2)
    h0, h1, h2 = h0 - along * y0, h1 - along * y1, h2 - along * y2  # what rounding left
    norm = tl.sqrt_rn(_dot(h0, h0, h1, h1, h2, h2))
    factor = tl.where(dead, 0.0, _clipped(norm, _power(254 - bits), grad_clip))
    decay = tl.where(dead, 0.0, decay)
    if ADAM:
        step = keep * factor
    else:
        step = -rate * factor
    d0, d1, d2 = decay * d0 + step * h0, decay * d1 + step * h1, decay * d2 + step * h2
    if CLIPPED:
        length = tl.sqrt_rn(_dot(d0, d0, d1, d1, d2, d2))
    else:
        bits = _power_bits(_largest(d0, d1, d2))
        near = _power(bits)
        length = tl.sqrt_rn(_dot(d0 * near, d0 * near, d1 * near, d1 * near, d2 * near, d2 * near)) * _power(254 - bits)
    a, b, c = _coefficients(length, norm * factor, v, before, live > 0, rate, decay_second, keep_second, eps, ADAM)
    tl.store(w_at + at0, (a * y0 + b * d0).to(W), mask=mask0)
    tl.store(w_at + at1, (a * y1 + b * d1).to(W), mask=mask1)
    tl.store(w_at + at2, (a * y2 + b * d2).to(W), mask=mask2)
    tl.store(m_at + at0, a * d0 + c * y0, mask=mask0)
    tl.store(m_at + at1, a * d1 + c * y1, mask=mask1)
    tl.store(m_at + at2, a * d2 + c * y2, mask=mask2)
    _end(PLACE)


@triton.jit
def manifold_step_long(
    programs, sizes, addresses, lr, grad_scale, found_inf, decay, keep, log_decay, decay_second, keep_second,
    log_decay_second, eps, grad_clip,
    W: tl.constexpr, G: tl.constexpr, ADAM: tl.constexpr, LR_TENSOR: tl.constexpr, CLIPPED: tl.constexpr,
    DENSE: tl.constexpr, UNIT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    PLACE: tl.constexpr,
):  # fmt: skip
    """The same for one row a program, read twice: six dot products fix the step, which is then written.

    Where they cancel (a gradient along the weight, a momentum along the step), the vectors are formed explicitly
    in two more readings.
    """
    row, size, address = _of_program(programs, sizes, addresses)
    _begin(PLACE)
    live = _goes_on(found_inf)
    fan_in = _fan_in(size, UNIT)
    end = fan_in * live
    column = tl.arange(0, BLOCK_COLUMNS)
    w_at, g_at = _pointer(address, 0, W, UNIT), _pointer(address, 1, G, UNIT)
    m_at = _pointer(address, 2, tl.float32, UNIT)
    v, before = _second_moment(address, row, live > 0, ADAM)
    rate = _rate(lr, address, log_decay, log_decay_second, live, LR_TENSOR, ADAM)

    # Each lane scales its gradients by a power of two of its own, lowered where a larger one comes.
    bits = tl.full([BLOCK_COLUMNS], 253, tl.int32)
    ww = tl.zeros([BLOCK_COLUMNS], tl.float32)
    wg, gg, wm, gm, mm = ww, ww, ww, ww, ww
    for start in range(0, end, BLOCK_COLUMNS):
        mask = start + column < fan_in
        at = _offsets(size, row, start + column, DENSE, UNIT)
        w = tl.load(w_at + at, mask=mask, other=0.0).to(tl.float32)
        g = _unscaled(tl.load(g_at + at, mask=mask, other=0.0), grad_scale)
        m = tl.load(m_at + at, mask=mask, other=0.0)
        lower = tl.minimum(bits, _power_bits(tl.abs(g)))
        less = _power(tl.maximum(127 + lower - bits, 0))
        bits = lower
        g = g * _power(bits)
        ww += w * w
        wg = wg * less + w * g
        gg = gg * less * less + g * g
        wm += w * m
        gm = gm * less + g * m
        mm += m * m
    lowest = tl.min(bits, axis=0)
    less = _power(tl.maximum(127 + lowest - bits, 0))
    scale, unscale = _power(lowest), _power(254 - lowest)
    square = tl.where(live > 0, tl.sum(ww, axis=0), 1.0)
    dead = square == 0  # no direction: the row stays, as if its gradient and momentum were zero
    square = tl.where(dead, 1.0, square)
    decay = tl.where(dead, 0.0, decay)
    s_gg, s_mm = tl.sum(gg * less * less, axis=0), tl.sum(mm, axis=0)
    s_wg = tl.sum(wg * less, axis=0)
    radial = tl.div_rn(s_wg, square)
    hh = s_gg - s_wg * radial
    hm = tl.sum(gm * less, axis=0) - radial * tl.sum(wm, axis=0)

    extra = 0.0 * radial  # what rounding leaves of the gradient along the weight
    careful = (s_gg > 0) & (hh < 1e-2 * s_gg)
    if careful:
        total = tl.zeros([BLOCK_COLUMNS], tl.float32)
        along = tl.zeros([BLOCK_COLUMNS], tl.float32)
        for start in range(0, end, BLOCK_COLUMNS):
            mask = start + column < fan_in
            at = _offsets(size, row, start + column, DENSE, UNIT)
            w = tl.load(w_at + at, mask=mask, other=0.0).to(tl.float32)
            g = _unscaled(tl.load(g_at + at, mask=mask, other=0.0), grad_scale)
            h = g * scale - radial * w
            total += h * h
            along += h * w
        left = tl.sum(along, axis=0)
        extra = tl.div_rn(left, square)
        hh = tl.maximum(tl.sum(total, axis=0) - left * extra, 0.0)
    norm = tl.sqrt_rn(hh)
    factor = tl.where(dead, 0.0, _clipped(norm, unscale, grad_clip))
    if ADAM:
        step = keep * factor
    else:
        step = -rate * factor
    own, other = decay * decay * s_mm, (step * norm) * (step * norm)
    total_square = own + 2 * decay * step * hm + other
    length = tl.sqrt_rn(tl.maximum(total_square, 0.0))
    exact = (total_square > 1e-2 * (own + other)) & (s_mm < 1e37) & (other < 1e37) & (careful == 0)
    if (exact == 0) & (own + other != 0):
        bits = tl.full([BLOCK_COLUMNS], 253, tl.int32)
        total = tl.zeros([BLOCK_COLUMNS], tl.float32)
        for start in range(0, end, BLOCK_COLUMNS):
            mask = start + column < fan_in
            at = _offsets(size, row, start + column, DENSE, UNIT)
            w = tl.load(w_at + at, mask=mask, other=0.0).to(tl.float32)
            g = _unscaled(tl.load(g_at + at, mask=mask, other=0.0), grad_scale)
            m = tl.load(m_at + at, mask=mask, other=0.0)
            d = decay * m + step * (g * scale - radial * w - extra * w)
            lower = tl.minimum(bits, _power_bits(tl.abs(d)))
            less = _power(tl.maximum(127 + lower - bits, 0))
            bits = lower
            d = d * _power(bits)
            total = total * less * less + d * d
        lowest = tl.min(bits, axis=0)
        less = _power(tl.maximum(127 + lowest - bits, 0))
        length = tl.sqrt_rn(tl.sum(total * less * less, axis=0)) * _power(254 - lowest)

    a, b, c = _coefficients(length, norm * factor, v, before, live > 0, rate, decay_second, keep_second, eps, ADAM)
    inverse = tl.div_rn(1.0, tl.sqrt_rn(square))
    for start in range(0, end, BLOCK_COLUMNS):
        mask = start + column < fan_in
        at = _offsets(size, row, start + column, DENSE, UNIT)
        w = tl.load(w_at + at, mask=mask, other=0.0).to(tl.float32)
        g = _unscaled(tl.load(g_at + at, mask=mask, other=0.0), grad_scale)
        m = tl.load(m_at + at, mask=mask, other=0.0)
        d = decay * m + step * (g * scale - radial * w - extra * w)
        y = w * inverse
        tl.store(w_at + at, (a * y + b * d).to(W), mask=mask)
        tl.store(m_at + at, a * d + c * y, mask=mask)
    _end(PLACE)


@triton.jit
def _rescue_bits(largest, W: tl.constexpr):
    """Exponent field of 1 where ``largest`` is in the safe range, else of the power that brings it to [1/2, 1)."""
    bits = _power_bits(largest)
    exponent = 127 - bits
    end: tl.constexpr = SAFE_EXPONENT_FLOAT16 if W == tl.float16 else SAFE_EXPONENT
    safe = (exponent > -end) & (exponent <= end)
    return tl.where(safe, 127, bits)


@triton.jit
def psi_step(
    programs, sizes, addresses, lr, grad_scale, found_inf, momentum,
    W: tl.constexpr, G: tl.constexpr, MOMENTUM: tl.constexpr, LR_TENSOR: tl.constexpr,
    DENSE: tl.constexpr, UNIT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    PLACE: tl.constexpr,
):  # fmt: skip
    """PSI-SGD for BLOCK_ROWS rows a program."""
    block, size, address = _of_program(programs, sizes, addresses)
    _begin(PLACE)
    live = _goes_on(found_inf)
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_COLUMNS)
    mask = (row < tl.load(size) * live)[:, None] & (column < _fan_in(size, UNIT))[None, :]
    at = _offsets(size, row[:, None], column[None, :], DENSE, UNIT)
    w_at = _pointer(address, 0, W, UNIT) + at
    w = tl.load(w_at, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(_pointer(address, 1, G, UNIT) + at, mask=mask, other=0.0)
    rate = _rate(lr, address, 0.0, 0.0, live, LR_TENSOR, False)

    # A power of two rounds nothing: the same point of the manifold, further from the end of the range.
    bits = _rescue_bits(tl.max(tl.abs(w), axis=1), W)
    scale = _power(bits)
    w = w * scale[:, None]
    step = -(rate * tl.sum(w * w, axis=1) * _power(254 - bits))[:, None] * _unscaled(g, grad_scale)
    if MOMENTUM:
        m_at = _pointer(address, 2, tl.float32, UNIT) + at
        step += (momentum * scale)[:, None] * tl.load(m_at, mask=mask, other=0.0)
        tl.store(m_at, step, mask=mask)
    tl.store(w_at, (w + step).to(W), mask=mask)
    _end(PLACE)


@triton.jit
def psi_step_long(
    programs, sizes, addresses, lr, grad_scale, found_inf, momentum,
    W: tl.constexpr, G: tl.constexpr, MOMENTUM: tl.constexpr, LR_TENSOR: tl.constexpr,
    DENSE: tl.constexpr, UNIT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    PLACE: tl.constexpr,
):  # fmt: skip
    """The same for one row a program: read twice, and the weight once more where it is rescaled."""
    row, size, address = _of_program(programs, sizes, addresses)
    _begin(PLACE)
    live = _goes_on(found_inf)
    fan_in = _fan_in(size, UNIT)
    end = fan_in * live
    column = tl.arange(0, BLOCK_COLUMNS)
    w_at, g_at = _pointer(address, 0, W, UNIT), _pointer(address, 1, G, UNIT)
    rate = _rate(lr, address, 0.0, 0.0, live, LR_TENSOR, False)

    largest = tl.zeros([BLOCK_COLUMNS], tl.float32)
    total = tl.zeros([BLOCK_COLUMNS], tl.float32)
    for start in range(0, end, BLOCK_COLUMNS):
        at = _offsets(size, row, start + column, DENSE, UNIT)
        w = tl.load(w_at + at, mask=start + column < fan_in, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(w))
        total += w * w
    bits = _rescue_bits(tl.max(largest, axis=0), W)
    scale = _power(bits)
    if bits != 127:
        total = tl.zeros([BLOCK_COLUMNS], tl.float32)
        for start in range(0, end, BLOCK_COLUMNS):
            at = _offsets(size, row, start + column, DENSE, UNIT)
            w = tl.load(w_at + at, mask=start + column < fan_in, other=0.0).to(tl.float32) * scale
            total += w * w
    rate = rate * tl.sum(total, axis=0) * _power(254 - bits)
    for start in range(0, end, BLOCK_COLUMNS):
        mask = start + column < fan_in
        at = _offsets(size, row, start + column, DENSE, UNIT)
        w = tl.load(w_at + at, mask=mask, other=0.0).to(tl.float32) * scale
        step = -rate * _unscaled(tl.load(g_at + at, mask=mask, other=0.0), grad_scale)
        if MOMENTUM:
            m_at = _pointer(address, 2, tl.float32, UNIT) + at
            step += momentum * scale * tl.load(m_at, mask=mask, other=0.0)
            tl.store(m_at, step, mask=mask)
        tl.store(w_at + at, (w + step).to(W), mask=mask)
    _end(PLACE)
