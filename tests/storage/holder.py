"""Holds a folder until its standard input ends: ``python -m tests.storage.holder STORE FOLDER BY [HOW]``.

Args:
    HOW: ``released``: it forks a child, and then lets go itself; ``child-released``: its child lets go and ends;
        ``child``: its child lives on; default no child.
"""

import gc
import os
import sys

from trainlab.storage import open_store

if __name__ == "__main__":
    how = sys.argv[4] if sys.argv[4:] else ""
    release = open_store(sys.argv[1]).hold(sys.argv[2], sys.argv[3])
    if how:
        begun, tell = os.pipe()
        child = os.fork()
        if child == 0 and how == "child-released":
            release()
            del release
            gc.collect()
            os._exit(0)
        if child == 0:
            os.write(tell, b"!")  # it has let go of what it inherited
            sys.stdin.read()
            os._exit(0)
        if how == "child-released":
            os.waitpid(child, 0)
        else:
            os.read(begun, 1)
        if how == "released":
            release()
    print("ready", flush=True)
    sys.stdin.read()
