"""The part of OpenAI's API that trains models, over the same tables and rules as the routes of our own.

ids           theirs and ours
schemas       what their clients read
job_request   what they send for a job
results       the result files of a job
events        a job's events, with its metrics
files, fine_tuning, models, uploads: the routes
"""

from fastapi import APIRouter

from api.routes.openai import files, fine_tuning, models, uploads

router = APIRouter(prefix="/v1", tags=["openai"])
for module in (files, fine_tuning, models, uploads):
    router.include_router(module.router)
