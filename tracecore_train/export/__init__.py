"""One daemon thread that hands records to the sidecar, and never holds training up."""
