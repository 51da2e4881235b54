/* Threads asked for in a way that may fail, and forks noticed. GNU's runtime ends the process when a thread cannot be
   started, and in a forked child it waits for ever for the threads that the parent had. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sets of CPUs */
#endif
#include "team.h"

#if defined(_OPENMP) && !defined(_WIN32)
#include <ctype.h>
#include <errno.h>
#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

static int forked;
static size_t stack_size; /* of OpenMP's threads; 0: the system's default */
static _Thread_local int had; /* OpenMP keeps a team for each thread that opens regions */

static void in_child(void) { forked = 1; }

/* A number and B, K, M or G: 0 for what the runtime does not take either. */
static size_t size_in(const char *name)
{
    const char *text = getenv(name), *units = "bkmg", *unit;
    char *end;
    unsigned long long value;
    int shift = 10;
    if (text == NULL)
        return 0;
    errno = 0;
    value = strtoull(text, &end, 10);
    if (errno || end == text)
        return 0;
    while (isspace((unsigned char)*end))
        end++;
    if (*end) {
        unit = strchr(units, tolower((unsigned char)*end++));
        while (isspace((unsigned char)*end))
            end++;
        if (unit == NULL || *end)
            return 0;
        shift = 10 * (int)(unit - units);
    }
    return value << shift >> shift == value ? (size_t)(value << shift) : 0;
}

int gc_team_init(void)
{
    stack_size = size_in("OMP_STACKSIZE");
    if (stack_size == 0)
        stack_size = size_in("GOMP_STACKSIZE");
    return pthread_atfork(NULL, NULL, in_child);
}

/* What Linux knows of a process that was forked before this module was loaded. */
static int forked_before(void)
{
#ifdef __linux__
    enum { PF_FORKNOEXEC = 0x40 }; /* include/linux/sched.h */
    char line[1024], *name_end;
    unsigned flags = 0;
    FILE *stat = fopen("/proc/self/stat", "r");
    if (stat == NULL)
        return 0;
    if (fgets(line, sizeof line, stat) && (name_end = strrchr(line, ')')))
        sscanf(name_end + 1, " %*c %*d %*d %*d %*d %*d %u", &flags);
    fclose(stat);
    return (flags & PF_FORKNOEXEC) != 0;
#else
    return 0;
#endif
}

int gc_forked(void)
{
    static int asked;
    if (!asked) {
        asked = 1;
        forked |= forked_before();
    }
    return forked;
}

#if defined(__linux__) && _OPENMP >= 201511
/* Binds the calling thread to one place of OpenMP's after the other. 0, or an errno. */
static int visit_places(void)
{
    int error = 0, i, p, places = omp_get_num_places();
    for (p = 0; p < places && !error; p++) {
        int n = omp_get_place_num_procs(p), most = 0, *cpu = calloc(n + 1, sizeof *cpu);
        cpu_set_t *set = NULL;
        if (cpu) {
            omp_get_place_proc_ids(p, cpu);
            for (i = 0; i < n; i++)
                most = cpu[i] > most ? cpu[i] : most;
            set = CPU_ALLOC(most + 1);
        }
        if (set) {
            size_t size = CPU_ALLOC_SIZE(most + 1);
            CPU_ZERO_S(size, set);
            for (i = 0; i < n; i++)
                CPU_SET_S(cpu[i], size, set);
            error = sched_setaffinity(0, size, set) ? errno : 0;
            CPU_FREE(set);
        } else {
            error = ENOMEM;
        }
        free(cpu);
    }
    return error;
}
#else
static int visit_places(void) { return 0; }
#endif

struct probe {
    pthread_t thread;
    pthread_mutex_t *gate; /* held until all are there */
    int visits, error;
    long id;
};

static void *wait_at_gate(void *argument)
{
    struct probe *probe = argument;
#ifdef __linux__
    probe->id = syscall(SYS_gettid);
#endif
    if (probe->visits)
        probe->error = visit_places();
    pthread_mutex_lock(probe->gate);
    pthread_mutex_unlock(probe->gate);
    return NULL;
}

/* A thread that was joined still counts against the limits for a moment. */
static void wait_until_gone(const struct probe *probe)
{
#ifdef __linux__
    int i;
    for (i = 0; i < 10000 && syscall(SYS_tgkill, getpid(), probe->id, 0) == 0; i++)
        sched_yield();
#else
    (void)probe;
#endif
}

static int start_and_end(int n, const pthread_attr_t *attributes)
{
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    struct probe *probe = calloc(n, sizeof *probe);
    int error = 0, i, started;
    if (probe == NULL)
        return ENOMEM;
    pthread_mutex_lock(&gate);
    for (started = 0; started < n; started++) {
        probe[started].gate = &gate;
        probe[started].visits = started == 0;
        error = pthread_create(&probe[started].thread, attributes, wait_at_gate, &probe[started]);
        if (error)
            break;
    }
    pthread_mutex_unlock(&gate);
    for (i = 0; i < started; i++) {
        pthread_join(probe[i].thread, NULL);
        error = error ? error : probe[i].error;
    }
    for (i = 0; i < started; i++)
        wait_until_gone(&probe[i]);
    pthread_mutex_destroy(&gate);
    free(probe);
    return error;
}

int gc_try_threads(int n)
{
    pthread_attr_t attributes;
    int error;
    if (n <= had)
        return 0;
    error = pthread_attr_init(&attributes);
    if (error)
        return error;
    if (stack_size)
        pthread_attr_setstacksize(&attributes, stack_size); /* too small: the default stays, as in the runtime */
    error = start_and_end(n, &attributes);
    pthread_attr_destroy(&attributes);
    if (error == 0)
        had = n;
    return error;
}

#else /* no OpenMP; or Windows, which knows no fork, and whose runtime cannot be asked either */
int gc_team_init(void) { return 0; }
int gc_forked(void) { return 0; }
int gc_try_threads(int n) { return (void)n, 0; }
#endif
