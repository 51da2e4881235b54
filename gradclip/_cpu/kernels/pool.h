/* Threads of this library's own, which a pass never waits for unless they are at work on it. */
#ifndef GRADCLIP_POOL_H
#define GRADCLIP_POOL_H

#include <stddef.h>

/* Does chunk i of a pass; thread: 0 for the thread that called, below the size of the team for each other. */
typedef void gc_chunk(void *pass, ptrdiff_t i, int thread);

/* Does chunks 0 to n - 1, each once, on the calling thread and on those of team - 1 workers that come in time. The workers are
 * woken if chunks are left after so many nanoseconds. */
void gc_pool_run(gc_chunk *chunk, void *pass, ptrdiff_t n, int team, int alone);

/* Returns how many workers have been started. */
int gc_pool_workers(void);

#endif
