"""Training rows: from a client's JSONL to token batches."""
