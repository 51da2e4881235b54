/* The list of work of a pass: how units are cut and put together into groups, by position alone.
 *
 * The sizes of work: a lane (of GC_LANES), a block (GC_BLOCK elements), a segment (GC_SEGMENT elements of one unit), a group
 * (what a thread takes at a time: a segment, a panel of columns, or short units that fill a segment together). */
#ifndef GRADCLIP_WORK_H
#define GRADCLIP_WORK_H

#include <stddef.h>
#include <stdint.h>
#include "fold.h"
#include "kernels.h"
#include "leaf.h"

enum {
    GC_LINE = 64,                  /* bytes of a cache line */
    GC_SEGMENT = 16 * GC_BLOCK,
    GC_SETUP = 128,                /* elements that take as long as starting with a unit */
    GC_AREA = 1 << 18,             /* elements of a panel, at least; */
    GC_SHARE = 16,                 /* a leaf has so many panels, unless they were smaller than that or */
    GC_LARGEST = 1 << 22,          /* larger than this */
    GC_FEWEST_ROWS = 512,          /* of a panel, if the leaf has them: a sum per column costs as much as some fifty */
    GC_MOST_ROWS = 1 << 17,        /* so that their sums stay exact enough */
    GC_BITS_OF_BYTES = 62          /* of the bytes of all leaves, so that no sum of sizes overflows */
};

typedef enum {
    GC_WHOLE,  /* units, as many as there are, over leaves perhaps */
    GC_PIECE,  /* a segment of one unit */
    GC_COLUMNS /* some rows of some units that are columns */
} gc_kind;

typedef struct {
    gc_kind part;
    ptrdiff_t leaf, unit;  /* the first, */
    ptrdiff_t count;       /* of so many units */
    ptrdiff_t first, rows; /* elements (rows) of a segment (of columns): from, how many */
    ptrdiff_t slot;        /* where the totals of such parts stand, of columns also their pairs */
} gc_group;

typedef struct {
    ptrdiff_t elements;  /* a complex number is one */
    ptrdiff_t bytes;     /* and what starting with units takes, as bytes */
    ptrdiff_t elsewhere; /* leaves that do not lie on the host, of which nothing is done */
    ptrdiff_t room;      /* groups at most */
    ptrdiff_t groups;    /* groups */
    ptrdiff_t slots;     /* totals that groups need beside those of whole units */
} gc_work;

static inline ptrdiff_t gc_padded(ptrdiff_t columns) { return (columns + GC_LANES - 1) / GC_LANES * GC_LANES; }

/* Room for so many totals and, from the start of a line, three arrays of double. */
static inline ptrdiff_t gc_slots_of(ptrdiff_t columns)
{
    const ptrdiff_t size = (ptrdiff_t)sizeof(gc_total);
    return columns + (3 * gc_padded(columns) * (ptrdiff_t)sizeof(double) + GC_LINE) / size + 1;
}

/* Elements of the panels of a leaf, and columns of one. */
static inline ptrdiff_t gc_area_of(const gc_leaf *leaf, ptrdiff_t *wide)
{
    ptrdiff_t area = leaf->units * leaf->size / GC_SHARE;
    area = area < GC_AREA ? GC_AREA : area > GC_LARGEST ? GC_LARGEST : area;
    *wide = area / GC_FEWEST_ROWS < GC_PANEL ? area / GC_FEWEST_ROWS : GC_PANEL;
    return area;
}

static inline ptrdiff_t gc_rows_of(ptrdiff_t area, ptrdiff_t columns)
{
    return area / columns < GC_MOST_ROWS ? area / columns : GC_MOST_ROWS;
}

/* How much work some leaves are; 0 where they hold more bytes than can be counted. columns: units that are columns come in
 * panels, or (0) one by one. */
static inline int gc_survey(gc_work *work, const gc_leaf *leaf, ptrdiff_t count, int columns)
{
    ptrdiff_t room = 0, bytes = 0, brief = 0, elements = 0, elsewhere = 0, wide;
    for (ptrdiff_t i = 0; i < count; i++) {
        const gc_leaf *a = leaf + i;
        if (a->device) {
            elsewhere++;
            room++;
            continue;
        }
        const ptrdiff_t more = a->units * a->size * a->itemsize; /* NumPy sees to it that this much can be counted */
        if (more > ((ptrdiff_t)1 << GC_BITS_OF_BYTES) - bytes)
            return 0;
        bytes += more + a->units * (GC_SETUP * 4);
        if (a->size > GC_SEGMENT)
            room += a->units * (a->size / GC_SEGMENT + 1) + 1; /* a group of short units ends there */
        else
            brief += a->units * (a->size + GC_SETUP);
        if (columns && a->panel) {
            const ptrdiff_t area = gc_area_of(a, &wide);
            room += (a->units / wide + 1) * (a->size / gc_rows_of(area, wide) + 1) + 1;
        }
        elements += a->units * a->size >> a->is_complex;
    }
    work->elements = elements;
    work->bytes = bytes;
    work->elsewhere = elsewhere;
    work->room = room + brief / GC_SEGMENT * 2 + 2; /* any two groups in a row hold more than a segment */
    work->groups = work->slots = 0;
    return 1;
}

static inline void gc_put_group(gc_work *work, gc_group *group, gc_kind part, ptrdiff_t leaf, ptrdiff_t unit, ptrdiff_t count)
{
    gc_group *g = group + work->groups++;
    g->part = part;
    g->leaf = leaf;
    g->unit = unit;
    g->count = count;
    g->first = g->rows = g->slot = 0;
}

/* A group of some elements of one unit, or of some rows of columns, that needs slots. */
static inline void gc_put_part(gc_work *work, gc_group *group, gc_group part, ptrdiff_t slots)
{
    part.slot = work->slots;
    work->slots += slots;
    group[work->groups++] = part;
}

/* Units that are columns, in panels. */
static inline void gc_cut_columns(gc_work *work, gc_group *group, const gc_leaf *leaf, ptrdiff_t index)
{
    ptrdiff_t wide;
    const ptrdiff_t area = gc_area_of(leaf, &wide);
    for (ptrdiff_t unit = 0, whole; unit < leaf->units; unit += whole) {
        whole = wide < leaf->units - unit ? wide : leaf->units - unit;
        ptrdiff_t rows = gc_rows_of(area, whole);
        rows = (leaf->size - 1) / ((leaf->size - 1) / rows + 1) + 1; /* alike, none left over */
        for (ptrdiff_t first = 0; first < leaf->size; first += rows) {
            const ptrdiff_t left = leaf->size - first;
            const gc_group part = {GC_COLUMNS, index, unit, whole, first, rows < left ? rows : left, 0};
            gc_put_part(work, group, part, gc_slots_of(whole));
        }
    }
}

/* Long units, in segments. */
static inline void gc_cut_segments(gc_work *work, gc_group *group, const gc_leaf *leaf, ptrdiff_t index)
{
    for (ptrdiff_t unit = 0; unit < leaf->units; unit++)
        for (ptrdiff_t first = 0; first < leaf->size; first += GC_SEGMENT) {
            const ptrdiff_t left = leaf->size - first;
            const gc_group part = {GC_PIECE, index, unit, 1, first, left < GC_SEGMENT ? left : GC_SEGMENT, 0};
            gc_put_part(work, group, part, 1);
        }
}

/* Groups of about a segment, into `group`, which has room for work->room: short units together, long ones in segments. */
static inline void gc_cut(gc_work *work, gc_group *group, const gc_leaf *leaf, const gc_leaf *source, ptrdiff_t count,
                          int columns)
{
    ptrdiff_t held = GC_SEGMENT; /* of the last group; full: the next units begin another */
    for (ptrdiff_t i = 0; i < count; i++) {
        const gc_leaf *a = leaf + i;
        const ptrdiff_t each = a->size + GC_SETUP;
        if (a->device) { /* units of a group stand side by side */
            held = GC_SEGMENT;
        } else if (columns && a->panel && source[i].panel && a->units > 1) {
            gc_cut_columns(work, group, a, i);
            held = GC_SEGMENT;
        } else if (a->size > GC_SEGMENT) {
            gc_cut_segments(work, group, a, i);
            held = GC_SEGMENT;
        } else
            for (ptrdiff_t unit = 0, whole; unit < a->units; unit += whole) {
                if (held + each > GC_SEGMENT) {
                    gc_put_group(work, group, GC_WHOLE, i, unit, 0);
                    held = 0;
                }
                whole = a->units - unit;
                if (whole > 1) {
                    const ptrdiff_t fit = (GC_SEGMENT - held) / each;
                    whole = fit < 1 ? 1 : fit < whole ? fit : whole;
                }
                group[work->groups - 1].count += whole;
                held += whole * each;
            }
    }
}

#endif
