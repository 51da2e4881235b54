from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t

cdef extern from "kernels.h" nogil:
    int GC_F16, GC_BF16, GC_F32, GC_F64
    enum:
        STRIP "GC_STRIP"
        TOGETHER "GC_TOGETHER"
    double gc_bound(double amax, int binades)
    ctypedef struct gc_sum:
        double high, low, amax
    ctypedef struct gc_kernels:
        const char *name
        double (*amax[4])(const void *x, ptrdiff_t n) noexcept nogil
        gc_sum (*sum_squares[4])(const void *x, ptrdiff_t n, double bound) noexcept nogil
        gc_sum (*sum_abs[4])(const void *x, ptrdiff_t n, double bound) noexcept nogil
        void (*scale[4])(void *y, const void *x, ptrdiff_t n, double factor) noexcept nogil
        void (*zero_nonfinite[4])(void *y, const void *x, ptrdiff_t n) noexcept nogil
        ptrdiff_t (*clamp[4])(void *y, const void *x, ptrdiff_t n, double low, double high) noexcept nogil
        ptrdiff_t (*count_outside[4])(const void *x, ptrdiff_t n, double low, double high) noexcept nogil
        void (*step[4])(void *y, const void *x, ptrdiff_t n, double factor) noexcept nogil
        void (*widen[4])(double *y, const void *x, ptrdiff_t n) noexcept nogil
        void (*narrow[4])(void *y, const double *x, ptrdiff_t n) noexcept nogil
        void (*cast[4])(void *y, const double *x, const double *factor, ptrdiff_t n) noexcept nogil
        void (*add_samples[4])(double *sum, double *error, const void *x, const void *next, ptrdiff_t stride, ptrdiff_t rows,
                               ptrdiff_t n, const double *factor) noexcept nogil
        void (*sum_columns[4])(const void *x, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t n, int ord, double *sum,
                               double *error, double *amax) noexcept nogil
        void (*scale_columns[4])(void *y, ptrdiff_t y_stride, const void *x, ptrdiff_t x_stride, ptrdiff_t rows, ptrdiff_t n,
                                 const double *factor) noexcept nogil
        ptrdiff_t (*count_nan[4])(const void *x, ptrdiff_t n) noexcept nogil
        ptrdiff_t (*count_inf[4])(const void *x, ptrdiff_t n) noexcept nogil
        bint (*any_near_middle)(const double *high, const double *low, ptrdiff_t n, bint squares, double error) noexcept nogil
        uint64_t (*read_words)(const uint64_t *x, ptrdiff_t n) noexcept nogil
        void (*rewrite_words)(uint64_t *x, ptrdiff_t n, uint64_t add) noexcept nogil
        const gc_kernels *ahead

# Below this many bytes, waking the team costs more than it saves.
cdef enum:
    SERIAL_BYTES = 1 << 20

cdef const gc_kernels *kernels

cdef enum:
    ROOM = 1 << 16      # bytes for each thread: two blocks of the widest dtype


cdef struct Scratch:
    char *room          # of each thread in turn
    void *memory
    int team


ctypedef void (*Chunk)(void *of, ptrdiff_t i, int thread) noexcept nogil


cdef void share_out(Chunk chunk, void *of, ptrdiff_t n, int team) noexcept nogil
cdef int take_scratch(Scratch *scratch, int team) except -1
cdef void give_scratch(Scratch *scratch) noexcept
cdef int team_of(int n) except -1
cdef int team_size(ptrdiff_t groups) except -1
