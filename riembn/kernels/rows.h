/* One step of SGD-G, Adam-G and PSI-SGD for rows of type REAL: included once for float and once for double.
 *
 * A row is read once from memory: the six dot products of weight w, gradient g and momentum m fix the step, which
 * is a linear combination of the three, written while the row is still in cache. The dot products do not do where
 * they cancel (a gradient along the weight) or leave the range of REAL; such a row takes the careful way, which
 * forms the tangent vector explicitly, in double and scaled. Formulas: riembn/optim/reference.py.
 */

typedef struct { double ww, wg, gg, wm, gm, mm; } NAME(dots_t);

static inline NAME(dots_t) NAME(dots)(const REAL *restrict w, const REAL *restrict g, const REAL *restrict m,
                                      int64_t n) {
    NAME(dots_t) sum = {0, 0, 0, 0, 0, 0};
    /* Blocks of a page keep partial sums in REAL short enough to lose no digits; they are added up in double. */
    const int64_t block = PAGE / sizeof(REAL);
    for (int64_t start = 0; start < n; start += block) {
        const int64_t end = start + block < n ? start + block : n;
        REAL ww = 0, wg = 0, gg = 0, wm = 0, gm = 0, mm = 0;
        ask_for_page(w + start), ask_for_page(g + start), ask_for_page(m + start);
#pragma omp simd reduction(+ : ww, wg, gg, wm, gm, mm)
        for (int64_t i = start; i < end; i++) {
            ww += w[i] * w[i];
            wg += w[i] * g[i];
            gg += g[i] * g[i];
            wm += w[i] * m[i];
            gm += g[i] * m[i];
            mm += m[i] * m[i];
        }
        sum.ww += ww, sum.wg += wg, sum.gg += gg, sum.wm += wm, sum.gm += gm, sum.mm += mm;
    }
    return sum;
}

/* w <- a[0] w + a[1] m + a[2] g and m <- b[0] w + b[1] m + b[2] g. */
static inline void NAME(combine)(REAL *restrict w, REAL *restrict m, const REAL *restrict g, int64_t n,
                                 const double *a, const double *b) {
    const REAL aw = (REAL)a[0], am = (REAL)a[1], ag = (REAL)a[2];
    const REAL bw = (REAL)b[0], bm = (REAL)b[1], bg = (REAL)b[2];
    if (n * (int64_t)sizeof(REAL) >= PAGE) ask_for_start(w + n), ask_for_start(g + n), ask_for_start(m + n);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        const REAL wi = w[i], mi = m[i], gi = g[i];
        w[i] = aw * wi + am * mi + ag * gi;
        m[i] = bw * wi + bm * mi + bg * gi;
    }
}

/* What both manifold methods need of the gradient. */
typedef struct {
    double radial;  /* <w, g> / <w, w> */
    double factor;  /* clipped h = factor * (g - radial w) */
    double square;  /* |clipped h|^2 */
    int careful;    /* the dot products do not do: see above */
} NAME(tangent_t);

static inline NAME(tangent_t) NAME(tangent)(const NAME(dots_t) * s, double grad_clip) {
    NAME(tangent_t) t;
    t.radial = s->wg / s->ww;
    t.square = s->gg - t.radial * s->wg;
    t.factor = 1;
    t.careful = !(t.square > 1e-2 * s->gg && s->gg > TINY && s->gg < HUGE_SQUARE && s->mm < HUGE_SQUARE);
    if (t.square > grad_clip * grad_clip) {
        t.factor = grad_clip / sqrt(t.square);
        t.square = grad_clip * grad_clip;
    }
    return t;
}

/* The careful way: writes to h a tangent vector that *multiply makes the clipped one, whose norm it returns, and the
 * exact length of w to *length. */
static double NAME(careful_tangent)(const REAL *w, const REAL *g, int64_t n, double grad_clip, double *h,
                                    double *multiply, double *length) {
    double largest = 0, ww = 0;
    for (int64_t i = 0; i < n; i++) ww += (double)w[i] * w[i];
    *length = sqrt(ww);
    for (int64_t i = 0; i < n; i++) {
        const double entry = fabs((double)g[i]);
        largest = entry > largest || isnan(entry) ? entry : largest;
    }
    int exponent = 0;
    if (largest > 0 && isfinite(largest)) frexp(largest, &exponent);
    const double scale = ldexp(1.0, -exponent < 1022 ? -exponent : 1022);
    for (int64_t i = 0; i < n; i++) h[i] = scale * g[i];
    /* Twice, since what the first projection leaves along w is rounding of the whole gradient. */
    for (int pass = 0; pass < 2; pass++) {
        double wh = 0;
        for (int64_t i = 0; i < n; i++) wh += (double)w[i] * h[i];
        for (int64_t i = 0; i < n; i++) h[i] -= wh / ww * w[i];
    }
    double square = 0;
    for (int64_t i = 0; i < n; i++) square += h[i] * h[i];
    const double norm = sqrt(square);
    /* grad_clip / norm against 1 / scale, neither of which overflows */
    const double unscaled = 1 / scale;
    *multiply = norm > 0 && grad_clip / norm < unscaled ? grad_clip / norm : unscaled;
    return norm * *multiply;
}

/* cos x, sin(x)/x and x sin x as functions of the square of x: smooth through zero. A row waits for them, so an angle
 * below 0.3 gets their power series, which in double is exact to the last digit there. */
static inline void NAME(trigonometry)(double square, double *cosine, double *sine_ratio, double *rise) {
    const double q = square;
    if (q < 0.1) {
        double c = 1 - q * (1. / 132), r = 1 - q * (1. / 156);
        c = 1 - q * (1. / 90) * c, r = 1 - q * (1. / 110) * r;
        c = 1 - q * (1. / 56) * c, r = 1 - q * (1. / 72) * r;
        c = 1 - q * (1. / 30) * c, r = 1 - q * (1. / 42) * r;
        c = 1 - q * (1. / 12) * c, r = 1 - q * (1. / 20) * r;
        *cosine = 1 - q * (1. / 2) * c;
        *sine_ratio = 1 - q * (1. / 6) * r;
        *rise = q * *sine_ratio;
    } else { /* or not a number */
        const double angle = sqrt(q), sine = sin(angle);
        *cosine = cos(angle);
        *sine_ratio = sine / angle;
        *rise = angle * sine;
    }
}

static void NAME(sgd_g_row)(REAL *w, const REAL *g, REAL *m, int64_t n, double lr, double momentum, double grad_clip,
                            double *scratch) {
    const NAME(dots_t) s = NAME(dots)(w, g, m, n);
    if (s.ww == 0) { /* no direction: it stays */
        for (int64_t i = 0; i < n; i++) m[i] = 0;
        return;
    }
    const NAME(tangent_t) t = NAME(tangent)(&s, grad_clip);
    double length = sqrt(s.ww);
    double cosine, sine_ratio, rise;
    if (!t.careful) {
        const double rate = lr * t.factor; /* d = momentum m - rate (g - radial w) */
        const double mh = s.gm - t.radial * s.wm;
        const double square = momentum * momentum * s.mm - 2 * momentum * rate * mh + lr * lr * t.square;
        NAME(trigonometry)(square > 0 ? square : 0, &cosine, &sine_ratio, &rise);
        const double back = rate * t.radial, shrink = 1 / length;
        const double a[3] = {cosine * shrink + sine_ratio * back, sine_ratio * momentum, -sine_ratio * rate};
        const double b[3] = {cosine * back - rise * shrink, cosine * momentum, -cosine * rate};
        NAME(combine)(w, m, g, n, a, b);
        return;
    }
    double multiply, square = 0;
    NAME(careful_tangent)(w, g, n, grad_clip, scratch, &multiply, &length);
    for (int64_t i = 0; i < n; i++) {
        scratch[i] = momentum * m[i] - lr * multiply * scratch[i];
        square += scratch[i] * scratch[i];
    }
    NAME(trigonometry)(square, &cosine, &sine_ratio, &rise);
    for (int64_t i = 0; i < n; i++) {
        const double y = w[i] / length, d = scratch[i];
        w[i] = (REAL)(cosine * y + sine_ratio * d);
        m[i] = (REAL)(cosine * d - rise * y);
    }
}

static void NAME(adam_g_row)(REAL *w, const REAL *g, REAL *m, REAL *v, int64_t n, double rate, double beta1,
                             double beta2, double eps, double grad_clip, double *scratch) {
    const NAME(dots_t) s = NAME(dots)(w, g, m, n);
    if (s.ww == 0) { /* no direction: it stays */
        for (int64_t i = 0; i < n; i++) m[i] = 0;
        *v = (REAL)(beta2 * *v);
        return;
    }
    const NAME(tangent_t) t = NAME(tangent)(&s, grad_clip);
    const double keep = 1 - beta1;
    double length = sqrt(s.ww), multiply = 0, of_gradient = t.square, square;
    if (t.careful) {
        const double norm = NAME(careful_tangent)(w, g, n, grad_clip, scratch, &multiply, &length);
        of_gradient = norm * norm;
        square = 0;
        for (int64_t i = 0; i < n; i++) {
            scratch[i] = beta1 * m[i] + keep * multiply * scratch[i];
            square += scratch[i] * scratch[i];
        }
    } else {
        const double add = keep * t.factor, mh = s.gm - t.radial * s.wm;
        square = beta1 * beta1 * s.mm + 2 * beta1 * add * mh + keep * keep * t.square;
        square = square > 0 ? square : 0;
    }
    const double second = (REAL)(beta2 * *v + (1 - beta2) * of_gradient);
    *v = (REAL)second;
    /* with eps = 0 a row that never had a gradient stays where it is */
    const double step = second + eps > 0 ? rate / sqrt(second + eps) : 0;
    double cosine, sine_ratio, unused;
    NAME(trigonometry)(step * step * square, &cosine, &sine_ratio, &unused);
    const double rise = step * square * sine_ratio; /* |m| sin(step |m|) */
    if (!t.careful) {
        const double add = keep * t.factor, back = add * t.radial, shrink = 1 / length;
        const double a[3] = {cosine * shrink + step * sine_ratio * back, -step * sine_ratio * beta1,
                             -step * sine_ratio * add};
        const double b[3] = {rise * shrink - cosine * back, cosine * beta1, cosine * add};
        NAME(combine)(w, m, g, n, a, b);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        const double y = w[i] / length;
        w[i] = (REAL)(cosine * y - step * sine_ratio * scratch[i]);
        m[i] = (REAL)(cosine * scratch[i] + rise * y);
    }
}

static void NAME(psi_sgd_row)(REAL *restrict w, const REAL *restrict g, REAL *restrict m, int64_t n, REAL lr,
                              REAL momentum) {
    REAL largest = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < n; i++) {
        const REAL entry = w[i] < 0 ? -w[i] : w[i];
        largest = entry > largest ? entry : largest;
    }
    int exponent = 0;
    frexp((double)largest, &exponent);
    /* A power of two rounds nothing: the same point of the manifold, further from the end of the range. */
    const int outside = exponent <= -SAFE_EXPONENT || exponent > SAFE_EXPONENT;
    const REAL scale = (REAL)ldexp(1.0, outside ? -exponent : 0);
    REAL square = 0;
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < n; i++) square += (scale * w[i]) * (scale * w[i]);
    const REAL rate = lr * square / scale;
    if (m) {
        const REAL kept = momentum * scale;
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            const REAL step = kept * m[i] - rate * g[i];
            m[i] = step;
            w[i] = scale * w[i] + step;
        }
    } else {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) w[i] = scale * w[i] - rate * g[i];
    }
}

/* A list of weights: tensor k has rows[k] rows of fan_in[k] entries; `longest` is the largest fan_in. Not 0 is returned
 * where there is no memory to work in; nothing has moved then. */
int NAME(sgd_g)(int64_t tensors, const int64_t *rows, const int64_t *fan_in, REAL *const *w, const REAL *const *g,
                 REAL *const *m, int64_t longest, int threads, double lr, double momentum, double grad_clip) {
    double *const room = malloc(sizeof(double) * (size_t)longest * (size_t)threads);
    if (!room) return 1;
#pragma omp parallel num_threads(threads)
    {
        double *const scratch = room + longest * omp_get_thread_num();
        PARTED(tensors, rows, fan_in, k, row) {
            const int64_t at = row * fan_in[k];
            NAME(sgd_g_row)(w[k] + at, g[k] + at, m[k] + at, fan_in[k], lr, momentum, grad_clip, scratch);
        }
    }
    free(room);
    return 0;
}

int NAME(adam_g)(int64_t tensors, const int64_t *rows, const int64_t *fan_in, REAL *const *w, const REAL *const *g,
                  REAL *const *m, REAL *const *v, const double *rates, int64_t longest, int threads, double beta1,
                  double beta2, double eps, double grad_clip) {
    double *const room = malloc(sizeof(double) * (size_t)longest * (size_t)threads);
    if (!room) return 1;
#pragma omp parallel num_threads(threads)
    {
        double *const scratch = room + longest * omp_get_thread_num();
        PARTED(tensors, rows, fan_in, k, row) {
            const int64_t at = row * fan_in[k];
            NAME(adam_g_row)(w[k] + at, g[k] + at, m[k] + at, v[k] + row, fan_in[k], rates[k], beta1, beta2, eps,
                             grad_clip, scratch);
        }
    }
    free(room);
    return 0;
}

int NAME(psi_sgd)(int64_t tensors, const int64_t *rows, const int64_t *fan_in, REAL *const *w, const REAL *const *g,
                   REAL *const *m, int threads, double lr, double momentum) {
#pragma omp parallel num_threads(threads)
    {
        PARTED(tensors, rows, fan_in, k, row) {
            const int64_t at = row * fan_in[k];
            NAME(psi_sgd_row)(w[k] + at, g[k] + at, m[k] ? m[k] + at : 0, fan_in[k], (REAL)lr, (REAL)momentum);
        }
    }
    return 0;
}
