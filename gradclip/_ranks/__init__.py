"""One norm over leaves that other ranks, or nobody, count: `comm` and `owned`. Imported by the first call with one of them.

comms.py knows whom a rank speaks with; exchange.py, what is exchanged; shared.py, what a call makes of it in which one
norm rules; units.py, what one makes of it in which leaves, groups, units or samples have norms of their own, with table.py for
their names and held.py for `strict`."""
