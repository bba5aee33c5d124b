"""The vocabulary every piece shares: names, record types, and their OTLP form.

Data without behaviour. Nothing here imports another part of the project.
"""
