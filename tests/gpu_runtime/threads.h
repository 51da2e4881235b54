/* Threads of a block as real threads, on a schedule that is shaken: slow, but a missing barrier gives wrong results. A thread that
 * ends while others wait at a barrier, as no thread of gradclip's kernels may, ends the process. */
#include "device_code.h"

#include <sched.h>
#include <stdio.h>

#include <condition_variable>
#include <mutex>
#include <thread>

static thread_local Index threadIdx;
static thread_local unsigned noise;

static inline void shake()
{
    noise = noise * 1664525u + 1013904223u;
    if (noise >> 28 == 0)
        sched_yield();
}

/* All threads of a block meet here, at each barrier, at the beginning and at the end. */
struct Meeting {
    std::mutex mutex;
    std::condition_variable met;
    int waiting = 0, ending = 0;
    long turn = 0;

    void wait(int count, bool ends = false)
    {
        std::unique_lock<std::mutex> lock(mutex);
        long now = turn;
        ending += ends;
        if (++waiting < count) {
            met.wait(lock, [&] { return turn != now; });
            return;
        }
        if (ending && ending != THREADS_OF_BLOCK) {
            fprintf(stderr, "gpu_runtime: a thread ended while others wait at a barrier\n");
            abort();
        }
        waiting = ending = 0;
        turn++;
        met.notify_all();
    }
};
static Meeting &block = *new Meeting, &launcher = *new Meeting; /* never destroyed: threads wait there as the process ends */

static inline void __syncthreads()
{
    shake();
    block.wait(THREADS_OF_BLOCK);
    shake();
}

static void work(int thread)
{
    threadIdx.x = thread;
    noise = thread * 2654435761u + 1;
    for (;;) {
        launcher.wait(THREADS_OF_BLOCK + 1);
        shake();
        body();
        block.wait(THREADS_OF_BLOCK, true);
        launcher.wait(THREADS_OF_BLOCK + 1);
    }
}

static void run_block()
{
    static bool started = false;
    for (int thread = 0; !started && thread < THREADS_OF_BLOCK; thread++)
        std::thread(work, thread).detach();
    started = true;
    launcher.wait(THREADS_OF_BLOCK + 1);
    launcher.wait(THREADS_OF_BLOCK + 1);
}
