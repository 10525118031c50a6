"""What a model answers to probes, judged by rules: probes, checks, summary. Pure and torch-free."""
