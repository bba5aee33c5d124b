"""Evidence from elsewhere: recognised by content, turned into records, judged like live ones.

Dumps of torch's flight recorder, our own records and bundles, and training logs come in as files;
what comes out are records through the same store and the same analysis as in a running job.
Everything read here was written by somebody else: bounded, checked, never executed.
"""
