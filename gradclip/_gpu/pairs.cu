/* The read pass over complex leaves that are contiguous and aligned: real and imaginary parts are summed as real elements are. What
 * is compared is squares of moduli, and the modulus of the largest alone is computed. */
template <class T>
struct Largest { /* so far: its square, and its parts as they lie in memory, which takes fewer registers */
    double square;
    typename T::bits a, b;
};

template <class T>
__device__ void keep_largest(Largest<T> *l, uint4 pack)
{
    typename T::bits x[T::PACK];
    unpack(x, pack);
#pragma unroll
    for (int k = 0; k < T::PACK; k += 2) {
        const double a = T::wide(x[k]), b = T::wide(x[k + 1]), square = fma(a, a, b * b);
        if (square > l->square) {
            l->square = square;
            l->a = x[k];
            l->b = x[k + 1];
        }
    }
}

/* As `add_tiles`. */
template <class T>
__device__ const char *add_pair_tiles(Running *r, Largest<T> *l, const char *p, const char *last, i64 step)
{
    Running own = *r;
    Largest<T> most = *l;
    Digits none;
    for (; last - p >= 0; p += step) {
        uint4 pack[AHEAD];
        const i64 left = last - p;
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            pack[j] = uint4{0, 0, 0, 0};
            if (left >= j * APART)
                pack[j] = *(const uint4 *)(p + j * APART);
        }
        if (!add_packs<2, T, false>(&own, &none, pack, 0, 0, 0))
            break;
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            keep_largest<T>(&most, pack[j]);
    }
    *r = own;
    *l = most;
    return p;
}

/* As `measure_tiles`. */
template <class T>
RARE void measure_pair_tiles(Running *r, const Job *job, char *base, Sum *sum)
{
    const i64 size = sizeof(typename T::bits), mine = (i64)job->lane * T::PACK, rest = rest_of(job, T::PACK);
    const char *last = base + (job->end - T::PACK) * size;
    Running own = *r;
    Largest<T> most = {0, 0, 0};
    for (i64 tile = job->first;; tile += job->step) {
        const char *p = add_pair_tiles<T>(&own, &most, base + (tile + mine) * size, last, job->step * size);
        if (last - p < 0)
            break;
        tile = (p - base) / size - mine;
        for (int j = 0; j < AHEAD && last - p >= 0; j++, p += APART)
            own = add_apart<2, T>(own, job, base, (p - base) / size, T::PACK, 0, 0, sum, 2);
    }
    if (rest < job->end)
        own = add_apart<2, T>(own, job, base, rest, (int)(job->end - rest), 0, 0, sum, 2);
    i64 exponent;
    const double z = modulus(T::wide(most.a), T::wide(most.b), &exponent);
    raise_amax(sum, exponent < 0 ? ldexp(z, (int)exponent) : z, exponent < 0 ? 0 : exponent);
    own.rare = 1; /* the Sum in shared memory holds that */
    *r = own;
}
