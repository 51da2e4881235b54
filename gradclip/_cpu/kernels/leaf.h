/* A leaf as the passes see it: memory, dtype, its units, and the axes of a unit unless that is contiguous.
 *
 * A unit is what has a norm of its own: the whole leaf, or one index along its unit axes (a row, a column, a
 * sample), which are kept in index order. The other axes are ordered by stride (outermost first), merged where
 * they join, and walked forwards, so a transposed or reversed array is read in the order of its memory. A
 * complex leaf is a real one of twice the size. Elements of a unit are numbered in this walking order. */
#ifndef GRADCLIP_LEAF_H
#define GRADCLIP_LEAF_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { GC_MAX_AXES = 65 }; /* NumPy's 64 and one for the parts of a complex number */

typedef struct {
    char *data;            /* of the first unit */
    ptrdiff_t size;        /* real elements of a unit */
    ptrdiff_t units;       /* 1: not cut */
    ptrdiff_t first_unit;  /* index among the units of all leaves */
    ptrdiff_t *axes;       /* ndim lengths, ndim strides in bytes; unit_ndim lengths, unit_ndim strides */
    uint8_t dtype, itemsize; /* of a real element; bytes, because many leaves are many of these */
    uint8_t is_complex;
    uint8_t ndim;          /* 0: units are contiguous and aligned */
    uint8_t unit_ndim;
    uint8_t device;        /* 0: this is the processor's memory; else of GPU number device - 1, which the passes leave out */
    uint8_t panel;         /* units are the columns of a matrix: aligned, and adjacent */
    uint8_t becomes;       /* dtype of the leaf that a write pass makes of this one */
} gc_leaf;

/* Where a unit begins. */
static inline char *gc_unit_data(const gc_leaf *leaf, ptrdiff_t unit)
{
    const ptrdiff_t *length = leaf->axes + 2 * leaf->ndim, *stride = length + leaf->unit_ndim;
    char *data = leaf->data;
    for (int d = leaf->unit_ndim - 1; d >= 0; d--) {
        data += unit % length[d] * stride[d];
        unit /= length[d];
    }
    return data;
}

/* One unit as a leaf of its own. */
static inline gc_leaf gc_unit(const gc_leaf *leaf, ptrdiff_t unit)
{
    gc_leaf one = *leaf;
    one.data = gc_unit_data(leaf, unit);
    one.units = 1;
    one.first_unit += unit;
    return one;
}

/* Not inlined: a compiler that knows the stride of the buffer builds vectors of elements, which takes 1.7 times as long. */
#if defined(__clang__)
__attribute__((noinline, unused))
#elif defined(__GNUC__)
__attribute__((noinline, noclone, unused))
#elif defined(_MSC_VER)
__declspec(noinline)
#endif
static void gc_copy_run(char *to, ptrdiff_t to_stride, const char *from, ptrdiff_t from_stride, ptrdiff_t n, int itemsize)
{
    if (to_stride == itemsize && from_stride == itemsize) {
        memcpy(to, from, (size_t)(n * itemsize));
        return;
    }
    switch (itemsize) { /* outside the loop, so that each is a load and a store: 3 times faster */
    case 2:
        for (ptrdiff_t i = 0; i < n; i++)
            memcpy(to + i * to_stride, from + i * from_stride, 2);
        break;
    case 4:
        for (ptrdiff_t i = 0; i < n; i++)
            memcpy(to + i * to_stride, from + i * from_stride, 4);
        break;
    default:
        for (ptrdiff_t i = 0; i < n; i++)
            memcpy(to + i * to_stride, from + i * from_stride, 8);
        break;
    }
}

/* Elements first .. first + n of a strided leaf into a buffer (scatter 0) or from it (scatter 1). */
static inline void gc_move(const gc_leaf *leaf, ptrdiff_t first, ptrdiff_t n, char *buffer, int scatter)
{
    const ptrdiff_t *length = leaf->axes, *stride = leaf->axes + leaf->ndim;
    const int inner = leaf->ndim - 1;
    ptrdiff_t index[GC_MAX_AXES];
    char *p = leaf->data;
    for (int d = inner; d >= 0; d--) {
        index[d] = first % length[d];
        first /= length[d];
        p += index[d] * stride[d];
    }
    for (;;) {
        ptrdiff_t run = length[inner] - index[inner];
        run = run < n ? run : n;
        if (scatter)
            gc_copy_run(p, stride[inner], buffer, leaf->itemsize, run, leaf->itemsize);
        else
            gc_copy_run(buffer, leaf->itemsize, p, stride[inner], run, leaf->itemsize);
        buffer += run * leaf->itemsize;
        n -= run;
        if (n == 0)
            return;
        p -= index[inner] * stride[inner]; /* the run ended its axis: carry */
        index[inner] = 0;
        for (int d = inner - 1; d >= 0; d--) {
            p += stride[d];
            if (++index[d] < length[d])
                break;
            p -= length[d] * stride[d];
            index[d] = 0;
        }
    }
}

#endif
