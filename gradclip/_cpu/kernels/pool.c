/* Workers: threads that are started once, sleep between passes, and are waited for only while they are at work.
 *
 * A pass is a list of chunks, which whoever is there takes one by one. The caller begins alone. A short pass is not worth
 * the risk that the system puts a worker aside in the middle of a chunk, because the caller would have to wait for it for
 * milliseconds. If the pass takes longer, the caller wakes the workers and goes on. When no chunk is left, it waits for the
 * workers that still have one: awake for GC_AWAKE, by when most chunks are done, and then asleep, so that it does not use up
 * its own time. A worker that comes later finds nothing to do, and nobody waits for it.
 *
 * There are no workers on Windows, nor where OpenMP has pinned the calling thread, because they would inherit its place. A
 * pass is done by its caller there. A forked process must not come here (team.h): the workers were not forked with it. */
#include "pool.h"

#if defined(_OPENMP) && !defined(_WIN32)
#include <omp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

enum {
    GC_AWAKE = 50000,  /* nanoseconds */
    GC_STACK = 1 << 18 /* bytes; kernels need 9 KiB, C libraries keep thread-local data there too */
};

typedef struct pass {
    gc_chunk *chunk;
    void *of;
    ptrdiff_t chunks;
    atomic_ptrdiff_t next; /* the first chunk that nobody has taken */
    int wanted;            /* workers that may still come; the number of the next one */
    atomic_int inside;     /* those that have come and not gone */
    struct pass *after;
} pass; /* on the stack of its caller, who takes it out of the list and waits until nobody is inside */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all below, and of what is not atomic in a pass */
static pthread_cond_t posted = PTHREAD_COND_INITIALIZER, left = PTHREAD_COND_INITIALIZER;
static pass *passes; /* those that may have chunks left */
static int asleep;   /* workers that wait for `posted` */
static int waiting;  /* callers that wait for `left` */
static int workers, refused;

static long long nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

/* Takes chunks until none is left, or until some time. Returns whether one is left. */
static int take_chunks(pass *p, int thread, long long end)
{
    do {
        const ptrdiff_t i = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed);
        if (i >= p->chunks)
            return 0;
        p->chunk(p->of, i, thread);
    } while (end == 0 || nanoseconds() < end);
    return 1;
}

/* Waits for the workers of a pass, for GC_AWAKE at most. Returns whether they have gone. */
static int gone_soon(const pass *p)
{
    const long long end = nanoseconds() + GC_AWAKE;
    do {
        for (int i = 0; i < 16; i++) {
            if (atomic_load_explicit(&p->inside, memory_order_acquire) == 0)
                return 1;
            relax();
        }
    } while (nanoseconds() < end);
    return 0;
}

/* The first pass that wants a worker, or NULL. */
static pass *wanting(void)
{
    pass *p = passes;
    while (p && (p->wanted == 0 || atomic_load_explicit(&p->next, memory_order_relaxed) >= p->chunks))
        p = p->after;
    return p;
}

static void *work(void *nothing)
{
    pthread_mutex_lock(&lock);
    for (;;) {
        pass *p = wanting();
        if (p == NULL) {
            asleep++;
            pthread_cond_wait(&posted, &lock);
            asleep--;
        } else {
            const int thread = p->wanted--;
            atomic_fetch_add_explicit(&p->inside, 1, memory_order_relaxed);
            pthread_mutex_unlock(&lock);
            take_chunks(p, thread, 0);
            pthread_mutex_lock(&lock);
            if (atomic_fetch_sub_explicit(&p->inside, 1, memory_order_release) == 1 && waiting)
                pthread_cond_broadcast(&left);
        }
    }
    return nothing;
}

/* Starts a worker that gets no signals, which are for the threads of the program. Returns whether the system let it. */
static int start(void)
{
    sigset_t all, before;
    pthread_t thread;
    pthread_attr_t attributes;
    int error = pthread_attr_init(&attributes);
    if (error)
        return 0;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, GC_STACK);
    sigfillset(&all); /* but what a thread does to itself, of which faulthandler tells */
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGFPE);
    sigdelset(&all, SIGILL);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&thread, &attributes, work, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return error == 0;
}

/* Puts a pass into the list and wakes those who may come. */
static void post(pass *p)
{
    int wake;
    pthread_mutex_lock(&lock);
    while (workers < p->wanted && !refused) {
        refused = !start();
        workers += !refused;
    }
    p->after = passes;
    passes = p;
    wake = asleep < p->wanted ? asleep : p->wanted;
    pthread_mutex_unlock(&lock);
    while (wake-- > 0)
        pthread_cond_signal(&posted);
}

static void withdraw(pass *p)
{
    pass **at = &passes;
    pthread_mutex_lock(&lock);
    while (*at != p)
        at = &(*at)->after;
    *at = p->after;
    pthread_mutex_unlock(&lock);
    if (gone_soon(p))
        return;
    pthread_mutex_lock(&lock);
    waiting++;
    while (atomic_load_explicit(&p->inside, memory_order_acquire))
        pthread_cond_wait(&left, &lock);
    waiting--;
    pthread_mutex_unlock(&lock);
}

void gc_pool_run(gc_chunk *chunk, void *of, ptrdiff_t n, int team, int alone)
{
    pass p = {chunk, of, n, 0, team - 1, 0, NULL};
    const int pinned = omp_get_proc_bind() != omp_proc_bind_false;
    if (!take_chunks(&p, 0, pinned ? 0 : nanoseconds() + alone))
        return;
    post(&p);
    take_chunks(&p, 0, 0);
    withdraw(&p);
}

int gc_pool_workers(void)
{
    int n;
    pthread_mutex_lock(&lock);
    n = workers;
    pthread_mutex_unlock(&lock);
    return n;
}

#else
void gc_pool_run(gc_chunk *chunk, void *of, ptrdiff_t n, int team, int alone)
{
    (void)team;
    (void)alone;
    for (ptrdiff_t i = 0; i < n; i++)
        chunk(of, i, 0);
}

int gc_pool_workers(void) { return 0; }
#endif
