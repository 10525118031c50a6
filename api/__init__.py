"""HTTP: routes, schemas and the dashboard."""
