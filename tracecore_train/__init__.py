"""TraceCore Train."""
