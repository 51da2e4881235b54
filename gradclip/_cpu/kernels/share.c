/* How a pass is shared out to threads: by a team of OpenMP's while teams come in time, by workers (pool.c) while they do
 * not.
 *
 * A parallel region of OpenMP ends when every thread of its team has come to the end, even one that found nothing left to
 * do. A thread that waits there, or for the next region, goes round in a loop: in GNU's runtime for some milliseconds. Where
 * processors are free this is the fastest way, because the next region finds the threads awake: the second pass of a call,
 * or the first one after an operation of PyTorch on the same runtime. Beside other programs it is the slowest. The loop uses
 * up the time that the system gives to a thread. Then another program runs for a slice of some milliseconds, and the rest of
 * the team waits for it, and so uses up its own time. A pass of half a millisecond takes 20 to 60 ms. How long the loops
 * last is set for the whole process when it starts (OMP_WAIT_POLICY), which is not for a library to do.
 *
 * So each calling thread keeps an account. A pass by a team adds the time that it saved, compared with the calling thread
 * alone, or takes off the time that it lost. While the account is below zero, workers do the passes, and GC_REPAID of the
 * time that they take is added, up to zero. So teams lose no more than that part of the time in the long run, and an idle
 * machine keeps its teams. Results do not depend on any of this: the chunks are the same. */
#include "share.h"

#include <math.h>

#define GC_CREDIT 5e-3 /* seconds: the most that the account holds, for hitches of an idle machine; about a slice */
#define GC_REPAID (1.0 / 32)
#define GC_ALONE 300000 /* nanoseconds that a pass must take before workers are woken */

double gc_balance_after(double balance, double busy, double waited, ptrdiff_t own, ptrdiff_t n, int team)
{
    double others = own ? (double)(n - own) / (double)own : 0; /* their chunks for each of the calling thread's */
    if (others > team - 1)                                     /* it was held up itself */
        others = team - 1;
    balance += busy * others - waited;
    return balance > GC_CREDIT && !isinf(balance) ? GC_CREDIT : balance;
}

double gc_balance_repaid(double balance, double seconds) { return fmin(balance + seconds * GC_REPAID, 0); }

#ifdef _OPENMP
#include <omp.h>

#ifdef _MSC_VER
static __declspec(thread) gc_sharing now;
#else
static _Thread_local gc_sharing now; /* OpenMP keeps a team for each thread that opens regions */
#endif

static void run_team(gc_chunk *chunk, void *pass, ptrdiff_t n, int team)
{
    const double start = omp_get_wtime();
    double end = start;
    ptrdiff_t own = 0;
#pragma omp parallel num_threads(team)
    {
        const int thread = omp_get_thread_num();
        ptrdiff_t i;
#pragma omp for schedule(dynamic) nowait
        for (i = 0; i < n; i++) {
            chunk(pass, i, thread);
            if (thread == 0)
                own++;
        }
        if (thread == 0)
            end = omp_get_wtime();
    }
    now.balance = gc_balance_after(now.balance, end - start, omp_get_wtime() - end, own, n, team);
    now.teams++;
    now.late += now.balance < 0;
}

void gc_share_out(gc_chunk *chunk, void *pass, ptrdiff_t n, int team)
{
    if (team == 1) {
        for (ptrdiff_t i = 0; i < n; i++)
            chunk(pass, i, 0);
    } else if (now.balance >= 0) {
        run_team(chunk, pass, n, team);
    } else {
        const double start = omp_get_wtime();
        gc_pool_run(chunk, pass, n, team, isinf(now.balance) ? 0 : GC_ALONE);
        now.balance = gc_balance_repaid(now.balance, omp_get_wtime() - start);
        now.apart++;
    }
}

gc_sharing gc_sharing_now(void) { return now; }
void gc_set_balance(double balance) { now.balance = balance; }

#else
void gc_share_out(gc_chunk *chunk, void *pass, ptrdiff_t n, int team) { gc_pool_run(chunk, pass, n, team, 0); }

gc_sharing gc_sharing_now(void)
{
    const gc_sharing none = {0, 0, 0, 0};
    return none;
}
void gc_set_balance(double balance) { (void)balance; }
#endif
