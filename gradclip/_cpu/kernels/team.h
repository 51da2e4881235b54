/* Whether this process may start threads: OpenMP cannot be asked, and ends the process where it may not. */
#ifndef GRADCLIP_TEAM_H
#define GRADCLIP_TEAM_H

/* Makes the two functions below ready; called once, when the module loads. Returns 0, or an errno. */
int gc_team_init(void);

/* Returns whether this process came from fork(), without an exec() since. */
int gc_forked(void);

/* Starts n threads as OpenMP would, all alive at once, and ends them. Returns 0, or the errno of what was refused. A
   calling thread that has once had as many gets 0 at once. */
int gc_try_threads(int n);

#endif
