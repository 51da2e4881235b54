/* Threads of a block as coroutines, each of which gives way at __syncthreads: fast, and always in the same order, so that a
 * missing barrier is not seen. */
#include "device_code.h"

#include <setjmp.h>
#include <ucontext.h>

enum { STACK = 1 << 16 };
static Index threadIdx;
static jmp_buf scheduler, resume[THREADS_OF_BLOCK];
static bool finished[THREADS_OF_BLOCK];

/* ucontext makes the stacks; a switch by setjmp makes no system call. */
static __attribute__((noinline)) void __syncthreads()
{
    if (!_setjmp(resume[threadIdx.x]))
        _longjmp(scheduler, 1);
}

static void coroutine()
{
    for (;;) {
        body();
        finished[threadIdx.x] = true;
        __syncthreads();
    }
}

static void start(int thread)
{
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = malloc(STACK);
    context.uc_stack.ss_size = STACK;
    makecontext(&context, coroutine, 0);
    setcontext(&context);
}

static void run_block()
{
    static bool started[THREADS_OF_BLOCK];
    static int left, thread;
    memset(finished, 0, sizeof finished);
    for (left = THREADS_OF_BLOCK; left;)
        for (thread = 0; thread < THREADS_OF_BLOCK; thread++)
            if (!finished[thread]) {
                threadIdx.x = thread;
                if (!_setjmp(scheduler)) {
                    if (started[thread])
                        _longjmp(resume[thread], 1);
                    started[thread] = true;
                    start(thread);
                }
                left -= finished[thread];
            }
}
