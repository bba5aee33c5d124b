"""What the sidecar knows about the job: one store that changes, one view that is read."""
