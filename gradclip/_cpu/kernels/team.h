/* Whether this process may start threads: OpenMP cannot be asked, and ends the process where it may not. */
#ifndef GRADCLIP_TEAM_H
#define GRADCLIP_TEAM_H

/* Once, when the module loads. 0, or an errno. */
int gc_team_init(void);

/* Whether this process came from fork(), without an exec() since. */
int gc_forked(void);

/* Starts n threads as OpenMP would, all alive at once, and ends them. 0, or the errno of what was refused. A calling
   thread that has once had as many gets 0 at once. */
int gc_try_threads(int n);

#endif
