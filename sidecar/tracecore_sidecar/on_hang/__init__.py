"""What follows a hang that was found: nothing more, dumps, the end of the attempt, a command.

Only once the bundle of the incident is in place, and never in the way of judging.
"""
