"""Where facts about ranks come from when the ranks do not send them themselves.

Each source reads one outside surface (rank pages, ``/proc``, py-spy, the flight recorder) and
gives records. None of them raises because of what it reads: what cannot be had comes back as a
record or a text that says why.
"""
