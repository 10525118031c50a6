"""The official `openai` package, as it is published, against a real service."""
