"""Celery: runs one attempt of one job at a time."""
