"""What the training thread writes to: rings of records and the rank page. Nothing here waits."""
