/* How a pass is shared out to threads, beside other programs too. */
#ifndef GRADCLIP_SHARE_H
#define GRADCLIP_SHARE_H

#include "pool.h"

/* What teams of the calling thread have done. */
typedef struct {
    double balance; /* seconds that they have saved, at most GC_CREDIT; below 0: workers do the passes */
    long teams;     /* passes by a team, */
    long late;      /* of these, those that brought the balance below 0 */
    long apart;     /* passes by workers */
} gc_sharing;

/* Does chunks 0 to n - 1, each once, on up to `team` threads. */
void gc_share_out(gc_chunk *chunk, void *pass, ptrdiff_t n, int team);

/* Returns the balance after a pass by a team. `busy` seconds after its start no chunk was left, `own` chunks of n the calling
 * thread had done itself; from then on it waited for the others for `waited` seconds. */
double gc_balance_after(double balance, double busy, double waited, ptrdiff_t own, ptrdiff_t n, int team);

/* Returns the balance after a pass by workers that took some seconds. */
double gc_balance_repaid(double balance, double seconds);

gc_sharing gc_sharing_now(void);

/* For tests: with infinity teams do all passes from now on, with minus infinity workers do, short ones too. */
void gc_set_balance(double balance);

#endif
