"""The dashboard: HTML pages under /dashboard that read the public API. Nothing else in the repository knows HTML.

mount.py        joins it to the API: static files, security headers, error pages
sign_in.py      an API key in, a signed session cookie out
pages.py        one function a page; to add one: a function there, a template, a link in templates/base.html
job_form.py     the fields of the new-job form, told from the request's own schema
job_settings.py a job's settings, each beside its default
charts.py       where Plotly's JavaScript is
swagger.py      where Swagger UI's files are
rendering.py    Jinja and how values look
templates/      base.html is every page's frame
static/         one module a page; api.js and page.js are shared
"""
