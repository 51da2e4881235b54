/* Finds the instruction sets of this processor and its operating system.
 *
 * A wide register is usable only when the operating system saves it (XGETBV), so both are asked.
 * setup.py defines GC_WITH_AVX2 and GC_WITH_AVX512 for the tables it has compiled. */
#include "dispatch.h"

#include <stdint.h>

extern const gc_kernels gc_kernels_baseline;
#ifdef GC_WITH_AVX2
extern const gc_kernels gc_kernels_avx2;
#endif
#ifdef GC_WITH_AVX512
extern const gc_kernels gc_kernels_avx512;
#endif

#if defined(GC_WITH_AVX2) || defined(GC_WITH_AVX512)
#ifdef _MSC_VER
#include <intrin.h>
static void cpuid(uint32_t leaf, uint32_t r[4]) { __cpuidex((int *)r, (int)leaf, 0); }
static uint64_t saved_registers(void) { return _xgetbv(0); }
#else
#include <cpuid.h>
static void cpuid(uint32_t leaf, uint32_t r[4])
{
    r[0] = r[1] = r[2] = r[3] = 0;
    __get_cpuid_count(leaf, 0, r, r + 1, r + 2, r + 3);
}
static uint64_t saved_registers(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}
#endif

enum { BIT_FMA = 1 << 12, BIT_OSXSAVE = 1 << 27, BIT_AVX = 1 << 28, BIT_F16C = 1 << 29 }; /* leaf 1, ecx */
enum { BIT_AVX2 = 1 << 5, BIT_AVX512F = 1 << 16, BIT_AVX512DQ = 1 << 17, BIT_AVX512BW = 1 << 30 }; /* leaf 7, ebx */
#define BIT_AVX512VL (UINT32_C(1) << 31)
enum { SAVED_YMM = 0x06, SAVED_ZMM = 0xe6 };

static int has_all(uint64_t word, uint64_t bits) { return (word & bits) == bits; }

/* 0: baseline, 1: AVX2 + FMA + F16C, 2: AVX-512 F, BW, DQ, VL as well */
static int level(void)
{
    uint32_t basic[4], extended[4], top[4];
    cpuid(0, top);
    if (top[0] < 7)
        return 0;
    cpuid(1, basic);
    cpuid(7, extended);
    if (!has_all(basic[2], BIT_FMA | BIT_OSXSAVE | BIT_AVX | BIT_F16C) || !has_all(extended[1], BIT_AVX2) ||
        !has_all(saved_registers(), SAVED_YMM))
        return 0;
    if (!has_all(extended[1], BIT_AVX512F | BIT_AVX512DQ | BIT_AVX512BW | BIT_AVX512VL) ||
        !has_all(saved_registers(), SAVED_ZMM))
        return 1;
    return 2;
}
#endif

int gc_available(const gc_kernels *tables[])
{
    int n = 0;
    tables[n++] = &gc_kernels_baseline;
#ifdef GC_WITH_AVX2
    if (level() >= 1)
        tables[n++] = &gc_kernels_avx2;
#endif
#ifdef GC_WITH_AVX512
    if (level() >= 2)
        tables[n++] = &gc_kernels_avx512;
#endif
    return n;
}
