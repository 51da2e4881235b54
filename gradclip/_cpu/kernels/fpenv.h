/* The floating-point state in which every pass runs: round to nearest, gradual underflow, no traps.
 *
 * Another library may have set flush-to-zero or a rounding mode; no bit of a result may depend on it,
 * and it must find its state, exception flags included, as it left it. */
#ifndef GRADCLIP_FPENV_H
#define GRADCLIP_FPENV_H

#include <stdint.h>

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>

typedef struct {
    unsigned int mxcsr;
    uint16_t x87_control, x87_status;
} gc_fpenv;

/* What main() starts with: all exceptions masked, nearest, gradual underflow, 64-bit long double. */
enum { GC_MXCSR = 0x1f80, GC_X87_CONTROL = 0x037f, GC_X87_FLAGS = 0x3f, GC_SSE_FLAGS = 0x3f };

static inline gc_fpenv gc_fp_enter(void)
{
    gc_fpenv saved = {_mm_getcsr(), GC_X87_CONTROL, 0};
    if ((saved.mxcsr & ~(unsigned)GC_SSE_FLAGS) != GC_MXCSR) /* to set it takes longer than to look */
        _mm_setcsr(GC_MXCSR);
#ifdef __GNUC__ /* long double lives in the x87 unit, which has a mode of its own */
    const uint16_t standard = GC_X87_CONTROL;
    __asm__ volatile("fnstcw %0" : "=m"(saved.x87_control));
    __asm__ volatile("fnstsw %0" : "=m"(saved.x87_status));
    if (saved.x87_control != standard)
        __asm__ volatile("fldcw %0" : : "m"(standard));
#endif
    return saved;
}

static inline void gc_fp_leave(gc_fpenv saved)
{
    if (_mm_getcsr() != saved.mxcsr)
        _mm_setcsr(saved.mxcsr);
#ifdef __GNUC__
    uint16_t status;
    __asm__ volatile("fnstsw %0" : "=m"(status));
    if (status & ~saved.x87_status & GC_X87_FLAGS) { /* flags can be cleared all together alone */
        uint32_t environment[7];
        __asm__ volatile("fnstenv %0" : "=m"(environment));
        environment[1] = (environment[1] & ~(uint32_t)GC_X87_FLAGS) | (saved.x87_status & GC_X87_FLAGS);
        __asm__ volatile("fldenv %0" : : "m"(environment));
    }
    if (saved.x87_control != GC_X87_CONTROL)
        __asm__ volatile("fldcw %0" : : "m"(saved.x87_control));
#endif
}

#elif defined(__aarch64__) && defined(__GNUC__)

typedef struct {
    uint64_t fpcr, fpsr;
} gc_fpenv;

static inline gc_fpenv gc_fp_enter(void)
{
    gc_fpenv saved;
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved.fpcr));
    __asm__ volatile("mrs %0, fpsr" : "=r"(saved.fpsr));
    if (saved.fpcr != 0)
        __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
    return saved;
}

static inline void gc_fp_leave(gc_fpenv saved)
{
    if (saved.fpcr != 0)
        __asm__ volatile("msr fpcr, %0" : : "r"(saved.fpcr));
    __asm__ volatile("msr fpsr, %0" : : "r"(saved.fpsr));
}

#else
#include <fenv.h>

typedef fenv_t gc_fpenv;

static inline gc_fpenv gc_fp_enter(void)
{
    gc_fpenv saved;
    fegetenv(&saved);
    fesetenv(FE_DFL_ENV);
    return saved;
}

static inline void gc_fp_leave(gc_fpenv saved) { fesetenv(&saved); }

#endif
#endif
