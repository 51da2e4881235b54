"""Threads that begin at the same moment. Nothing of gradclip is imported here: some tests import it in these threads."""

import threading


def at_once(count, work):
    """What work(0), work(1), ... return in so many threads; the first error is raised."""
    found, errors, gate = [None] * count, [], threading.Barrier(count)

    def run(number):
        gate.wait()
        try:
            found[number] = work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found
