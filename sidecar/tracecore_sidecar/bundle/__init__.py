"""The bundle of an incident: one directory with everything that was to be had about it.

Gathered beside the event loop within a deadline, written aside and renamed: whoever sees a bundle
sees a whole one. ``docs/bundle.md`` says what is inside and what never is.
"""
