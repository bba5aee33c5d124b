"""``tracecore doctor``: what can be seen on this machine with this torch, and how to see more.

A trial proves the path (:mod:`.trial`: a real sidecar, a real rank of one), probes look at what
the node shows (:mod:`.node`), :mod:`.diagnosis` joins both into one finding per signal, and
:mod:`.report` prints them.
"""
