"""The shared noun: jobs, their tables and rules; knows the database, not HTTP, not torch."""
