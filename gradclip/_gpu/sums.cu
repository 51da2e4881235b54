/* What is summed and decided: the same arithmetic as _cpu/fold.pxd, in pairs of float64 (a GPU has no long double).
 *
 * The .cu files of this folder are one source: joined in the order that program.py gives and compiled by NVRTC, without
 * any header, for the device at hand. Every struct is made of 8-byte words, so that NumPy can take
 * them as int64 and float64. */
typedef long long i64;
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;

#define INF __longlong_as_double(0x7ff0000000000000LL)
#define NOT_A_NUMBER __longlong_as_double(0x7ff8000000000000LL)
#define TINY 0x1p-430 /* GC_TINY, GC_HUGE and GC_SHIFT of _cpu/kernels.h */
#define HUGE 0x1p+479
#define NONE 0x7fffffffffffffffLL

enum { THREADS = 256, SHIFT = 600, FAR = 40, DENORMAL = -1074 };

struct Sum {                /* (high + low) * 2**(shift * bin) over the finite elements */
    double high, low;
    i64 bin;
    double amax;            /* largest finite magnitude: amax * 2**exponent, */
    i64 exponent;           /* 0, or 2 for a complex number beyond float64 */
    i64 nans, infs, outside;
    i64 first;              /* flat index in its leaf of the first element that is not finite, or NONE */
                            /* outside, first: where `strict` measures what it may keep, what note_bits tells; outside of a total:
                               what `settle` counts */
};

enum { KEEP, SCALE, CLAMP, STEP, LEAVE }; /* LEAVE: not even a copy is written */

struct Write {
    i64 kind, acts, zero;
    double value, last;     /* of the factor: see Factor in fold.pxd */
    i64 shift;
};

struct Wide {               /* (head + tail) * 2**exponent */
    double head, tail;
    int exponent;
};

__device__ void clear(Sum *s)
{
    s->high = s->low = s->amax = 0;
    s->bin = s->exponent = s->nans = s->infs = s->outside = 0;
    s->first = NONE;
}

__device__ void two_sum(double *high, double *low, double term)
{
    double t = *high + term, part = t - *high;
    *low += (*high - (t - part)) + (term - part);
    *high = t;
}

__device__ int shift_of(double ord) { return ord == 2 ? 2 * SHIFT : SHIFT; }

__noinline__ __device__ void fold(Sum *into, double high, double low, i64 bin, double ord)
{
    if (high == 0 && low == 0)
        return;
    if (into->high == 0 && into->low == 0) {
        into->high = high;
        into->low = low;
        into->bin = bin;
        return;
    }
    if (bin != into->bin) {
        i64 apart = bin > into->bin ? bin - into->bin : into->bin - bin;
        int down = -shift_of(ord) * (int)(apart < FAR ? apart : FAR);
        if (bin < into->bin) {
            high = ldexp(high, down);
            low = ldexp(low, down);
        } else {
            into->high = ldexp(into->high, down);
            into->low = ldexp(into->low, down);
            into->bin = bin;
        }
    }
    two_sum(&into->high, &into->low, high);
    into->low += low;
}

__device__ void raise_amax(Sum *into, double amax, i64 exponent)
{
    if (exponent > into->exponent || (exponent == into->exponent && amax > into->amax)) {
        into->amax = amax;
        into->exponent = exponent;
    }
}

__noinline__ __device__ void merge(Sum *into, const Sum *s, double ord)
{
    fold(into, s->high, s->low, s->bin, ord);
    raise_amax(into, s->amax, s->exponent);
    into->nans += s->nans;
    into->infs += s->infs;
    into->outside += s->outside;
    into->first = s->first < into->first ? s->first : into->first;
}

/* The Sums of `lanes` neighbouring threads (a power of two) into that of the first: a tree, so that the order is fixed. */
__noinline__ __device__ void merge_lanes(Sum *shared, int lanes, double ord)
{
    const int thread = threadIdx.x, lane = thread % lanes;
    for (int half = lanes / 2; half > 0; half /= 2) {
        __syncthreads();
        if (lane < half)
            merge(&shared[thread], &shared[thread + half], ord);
    }
    __syncthreads();
}

/* ---- powers of any order: _cpu/powers.h without long double -------------------------------------------------------- */

struct Order {              /* p = bins * SHIFT + rest, exactly */
    double p, rest;
    i64 bins;
};

__device__ Order order_of(double p)
{
    Order o;
    o.p = p < 0x1p-12 ? 0x1p-12 : p > 0x1p60 ? 0x1p60 : p;
    o.rest = fmod(o.p, (double)SHIFT);
    o.bins = (i64)((o.p - o.rest) / SHIFT);
    return o;
}

/* Add (x * 2**exponent)**p for x > 0. */
__noinline__ __device__ void add_power(Sum *into, double x, int exponent, Order o, double ord)
{
    int e;
    double m = frexp(x, &e), t;
    e += exponent;
    if (m < 0.7071067811865476) {
        m *= 2;
        e--;
    }
    i64 bin = e * o.bins;
    double product = e * o.rest, k = rint(product);
    double left = fma((double)e, o.rest, -product) + (product - k);
    if (o.p == 0.5) {
        const int odd = e & 1;
        k = (e - odd) / 2;
        t = sqrt(odd ? 2 * m : m);
    } else if (o.p < 1)
        t = exp2(o.p * log2(m) + left);
    else if (o.p <= SHIFT)
        t = left == 0 ? pow(m, o.p) : pow(m, o.p) * exp2(left);
    else {
        double l = o.p * log2(m), over = rint(l / SHIFT);
        bin += (i64)over;
        l = fma(-(double)SHIFT, over, l);
        k += rint(l);
        t = exp2(l - rint(l)) * exp2(left);
    }
    double over = rint(k / SHIFT);
    fold(into, ldexp(t, (int)(k - SHIFT * over)), 0, bin + (i64)over, ord);
}

__noinline__ __device__ double root(double head, double tail, i64 bin, double p, int *exponent)
{
    const Order o = order_of(p);
    int e;
    double m = frexp(head, &e);
    m += ldexp(tail, -e);
    if (m < 0.7071067811865476) {
        m *= 2;
        e--;
    }
    double whole = rint(((double)bin * SHIFT + e) / o.p);
    double left = fma(-whole, o.rest, (double)(bin - (i64)whole * o.bins) * SHIFT + e);
    double l = (log2(m) + left) / o.p, more = rint(l);
    *exponent = (int)(whole + more);
    return exp2(l - more);
}

/* ---- from a sum to a norm, from a norm to a factor ------------------------------------------------------------------ */

__device__ Wide divide(Wide w, double d)
{
    int exponent;
    d = frexp(d, &exponent);
    w.exponent -= exponent;
    double q = w.head / d, rest = (fma(-q, d, w.head) + w.tail) / d;
    w.head = q + rest;
    w.tail = rest - (w.head - q);
    return w;
}

/* The sum as it is; of orders other than 1, 2 and inf without its bin. */
__device__ Wide sum_of(const Sum *s, double ord)
{
    Wide w = {0, 0, 0};
    if (ord == 0) {
        w.head = frexp(s->amax, &w.exponent);
        w.exponent += (int)s->exponent;
        return w;
    }
    w.head = s->high + s->low;
    w.tail = s->low - (w.head - s->high);
    if (ord == 1 || ord == 2)
        w.exponent = shift_of(ord) * (int)s->bin;
    return w;
}

__device__ Wide norm_of(const Sum *s, double ord, double grad_scale)
{
    Wide w = sum_of(s, ord);
    if (ord == 2 && w.head > 0) {
        double r = sqrt(w.head), rest = (fma(-r, r, w.head) + w.tail) / (2 * r);
        w.head = r + rest;
        w.tail = rest - (w.head - r);
        w.exponent /= 2;
    } else if (ord != 0 && ord != 1 && w.head > 0) {
        w.head = root(w.head, w.tail, s->bin, ord, &w.exponent);
        w.tail = 0;
    }
    return grad_scale == 1 ? w : divide(w, grad_scale);
}

__device__ double narrow(Wide w)
{
    if (w.exponent == 0)
        return w.head;
    double value = ldexp(w.head, w.exponent);
    if (value < 0x1p-1022) {
        double rest = w.head - ldexp(value, -w.exponent);
        double half = ldexp(1.0, DENORMAL - 1 - w.exponent);
        if ((rest == half && w.tail > 0) || (rest == -half && w.tail < 0))
            value += copysign(0x1p-1074, rest);
    }
    return value;
}

/* last and shift: a number times 2**exponent. */
__device__ void carry(Write *w, double number, int exponent)
{
    w->shift = -1020 < exponent && exponent < 1020 ? 0 : exponent < 0 ? exponent + 500 : exponent - 500;
    w->last = ldexp(number, exponent - (int)w->shift);
}

__device__ bool tame(double x) { return 1e-290 < x && x < 1e290; }

/* target / (norm + eps) / grad_scale */
__device__ void set_factor(Write *w, double target, Wide norm, double eps, double grad_scale)
{
    double n = narrow(norm);
    w->value = w->last = 0;
    w->shift = 0;
    if (target == 0)
        return;
    w->value = w->last = target / (n + eps) / grad_scale;
    if (tame(w->value) && tame(n + eps) && tame(target / (n + eps)))
        return;
    int et, en, ed, es;
    n = frexp(norm.head, &en);
    en += norm.exponent;
    if (eps > 0) {
        double d = frexp(eps, &ed);
        if (norm.head == 0 || ed > en) {
            n = d + (norm.head > 0 ? ldexp(n, en - ed) : 0);
            en = ed;
        } else
            n += ldexp(d, ed - en);
    }
    target = frexp(target, &et);
    grad_scale = frexp(grad_scale, &es);
    double number = target / n / grad_scale;
    et -= en + es;
    w->value = ldexp(number, et);
    carry(w, number, et);
    if (w->shift == 0)
        w->last = w->value;
}

__device__ void multiply(Write *w, double by)
{
    if (w->last == 0 || by == 0 || isnan(w->last)) {
        w->last *= by;
        return;
    }
    int exponent, more;
    double product = frexp(w->last, &exponent) * frexp(by, &more);
    carry(w, product, exponent + more + (int)w->shift);
}

/* sqrt(a*a + b*b) as result * 2**exponent, the exponent 0 where it can be, for finite a, b: to half an ulp and a little. */
__noinline__ __device__ double modulus(double a, double b, i64 *exponent)
{
    a = fabs(a);
    b = fabs(b);
    double large = a > b ? a : b, small = a > b ? b : a;
    *exponent = 0;
    if (small == 0)
        return large;
    int e;
    frexp(large, &e);
    large = ldexp(large, -e);
    small = ldexp(small, -e); /* what underflows here is far below the last bit */
    double p = large * large, q = small * small, t = p + q;
    double rest = ((p - t) + q) + (fma(large, large, -p) + fma(small, small, -q));
    double r = sqrt(t);
    r += (fma(-r, r, t) + rest) / (2 * r);
    *exponent = !(ldexp(r, e) < INF) ? 2 : e < -900 ? -SHIFT : 0; /* where float64 has not the range, or not the bits */
    return ldexp(r, e - (int)*exponent);
}
