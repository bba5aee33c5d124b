"""The per-node sidecar: takes the records of this node's ranks, judges them, tells people."""
