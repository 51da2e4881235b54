/* Callers that share their passes out to workers at the same time. Exits with 1 if a chunk was not done exactly once, or was done by
 * a thread whose number another one had in the same pass. Compiled with kernels/pool.c, by sanitizers too. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pool.h"

enum { CALLERS = 4, PASSES = 2000, MOST = 40, TEAM = 4 };

struct own {
    int done[MOST]; /* not atomic: only whoever took the chunk touches it, and the caller afterwards */
    pthread_t by[MOST];
    int thread[MOST];
    int wrong;
};

static void chunk(void *of, ptrdiff_t i, int thread)
{
    struct own *own = of;
    volatile int work = 0;
    for (int k = 0; k < 100 * ((int)i % 5); k++)
        work += k;
    own->done[i]++;
    own->by[i] = pthread_self();
    own->thread[i] = thread;
}

static void *call(void *of)
{
    struct own *own = of;
    for (int pass = 0; pass < PASSES; pass++) {
        const int n = pass % (MOST + 1), team = 2 + pass % (TEAM - 1);
        memset(own->done, 0, sizeof own->done);
        gc_pool_run(chunk, own, n, team, 0);
        for (int i = 0; i < MOST; i++) {
            own->wrong |= own->done[i] != (i < n);
            if (i >= n)
                continue;
            own->wrong |= own->thread[i] < 0 || own->thread[i] >= team;
            own->wrong |= (own->thread[i] == 0) != (pthread_equal(own->by[i], pthread_self()) != 0);
            for (int j = 0; j < i; j++)
                own->wrong |= (own->thread[i] == own->thread[j]) != (pthread_equal(own->by[i], own->by[j]) != 0);
        }
    }
    return NULL;
}

int main(void)
{
    static struct own own[CALLERS];
    pthread_t caller[CALLERS];
    int wrong = 0;
    for (int i = 0; i < CALLERS; i++)
        if (pthread_create(&caller[i], NULL, call, &own[i]))
            return 2;
    for (int i = 0; i < CALLERS; i++) {
        pthread_join(caller[i], NULL);
        wrong |= own[i].wrong;
    }
    printf("%d\n", gc_pool_workers());
    return wrong;
}
