/* Folding: the Sums of segments to those of units, and these to the Sum of all, in a fixed order. */

/* Add each step-th of some Sums, n of them, in order. */
__device__ void merge_all(Sum *into, const Sum *from, i64 n, i64 step, double ord)
{
    enum { AHEAD = 4 }; /* Sums that are loaded before the first is added */
    for (i64 k = 0; k < n; k += AHEAD) {
        Sum s[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (k + j < n)
                s[j] = from[(k + j) * step];
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (k + j < n)
                merge(into, &s[j], ord);
    }
}

/* The sum of n Sums, by all threads of a block; `sums` is room for theirs. */
__device__ void fold_all(const Sum *from, i64 n, double ord, Sum *sums, Sum *to)
{
    Sum own;
    clear(&own);
    if (threadIdx.x < n)
        merge_all(&own, from + threadIdx.x, (n - threadIdx.x + THREADS - 1) / THREADS, THREADS, ord);
    sums[threadIdx.x] = own;
    merge_lanes(sums, THREADS, ord);
    if (threadIdx.x == 0)
        *to = sums[0];
}

/* Every `lanes` threads fold one unit; those of a thread block, its partial sum of all. from_leaves: of the segments in
 * `from`; else unit i is the sum of i, i + units, i + 2 * units ... of the `count` Sums in `from`. */
__device__ void fold_units(const Leaf *leaf, i64 count, const Sum *from, i64 units, bool from_leaves, i64 lanes, double ord,
                           Sum *sums, Sum *unit, Sum *partial)
{
    Sum *sum = &sums[threadIdx.x];
    const i64 index = ((i64)blockIdx.x * THREADS + threadIdx.x) / lanes, lane = threadIdx.x % lanes;
    Sum own;
    clear(&own);
    if (index < units) {
        i64 start = index, step = units, n = (count - index + units - 1) / units;
        if (from_leaves) {
            leaf = leaf_at(leaf, count, &Leaf::first_unit, index);
            start = leaf->first_slot + (index - leaf->first_unit) * leaf->segments;
            n = leaf->segments;
            step = 1;
        }
        if (lane < n)
            merge_all(&own, from + start + lane * step, (n - lane + lanes - 1) / lanes, lanes * step, ord);
    }
    *sum = own;
    merge_lanes(sums, (int)lanes, ord);
    if (index < units && lane == 0)
        unit[index] = *sum;
    if (lanes < THREADS) {
        if (lane != 0)
            clear(sum); /* it is in that of lane 0 */
        merge_lanes(sums, THREADS, ord);
    }
    if (threadIdx.x == 0)
        partial[blockIdx.x] = *sum;
}

/* What a pass over segments is folded from and to. ticket: how many thread blocks have ended, from 0. */
struct Folding {
    const Sum *slots;
    i64 units, lanes;
    double ord;
    Sum *unit, *partial, *total;
    u32 *ticket;
};

/* Units, a partial sum of all by each thread block, and in the last block that ends the sum of all. Returns whether this is that
 * block; its first thread has written the sum of all. */
__device__ bool fold_to_total(const Leaf *leaf, i64 count, const Folding *f)
{
    __shared__ Sum sums[THREADS];
    __shared__ bool last;
    fold_units(leaf, count, f->slots, f->units, true, f->lanes, f->ord, sums, f->unit, f->partial);
    if (gridDim.x == 1) {
        if (threadIdx.x == 0)
            *f->total = *f->partial;
        return true;
    }
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicAdd(f->ticket, 1u) + 1 == gridDim.x;
    }
    __syncthreads();
    if (!last)
        return false;
    __threadfence();
    fold_all(f->partial, gridDim.x, f->ord, sums, f->total);
    return true;
}

KERNEL(fold_segments, )(const Leaf *leaf, i64 count, i64 blocks, const Sum *slots, i64 units, i64 lanes, double ord, Sum *unit,
                        Sum *partial, Sum *total, u32 *ticket)
{
    const Folding f = {slots, units, lanes, ord, unit, partial, total, ticket};
    fold_to_total(leaf, count, &f);
}

/* Units i, i + owners, i + 2 * owners ... belong to owner i. */
KERNEL(fold_owners, )(const Sum *unit, i64 count, i64 owners, double ord, Sum *owner, Sum *partial)
{
    __shared__ Sum sums[THREADS];
    fold_units(0, count, unit, owners, false, 1, ord, sums, owner, partial);
}

/* One thread block. */
KERNEL(fold_total, )(const Sum *partial, i64 n, double ord, Sum *total)
{
    __shared__ Sum sums[THREADS];
    fold_all(partial, n, ord, sums, total);
}
