"""What tells other systems of a job's changes.

targets     where a message may go: which URLs, which addresses
messages    what it says, and its signature
endpoints   a tenant's registered URLs

The messages to send are rows (`jobs.lifecycle.deliveries`); `worker.webhooks` sends them.
"""
