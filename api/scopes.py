"""Which scope each route wants: the one place. A route that is not here opens to nobody, and a test names it."""

from jobs.errors import Forbidden
from jobs.repository import Identity
from jobs.scopes import Scope

OPEN = frozenset({"get_health", "get_readiness", "go_to_jobs", "go_to_docs"})
"""Routes that ask for no key, by the names of their functions."""

SCOPES: dict[str, Scope | None] = {
    "create_job": Scope.JOBS_WRITE,
    "list_jobs": Scope.JOBS_READ,
    "get_job": Scope.JOBS_READ,
    "cancel_job": Scope.JOBS_WRITE,
    "pause_job": Scope.JOBS_WRITE,
    "resume_job": Scope.JOBS_WRITE,
    "retry_final_job": Scope.JOBS_WRITE,
    "delete_job": Scope.JOBS_WRITE,
    "get_provenance": Scope.ADAPTERS_READ,
    "list_attempts": Scope.JOBS_READ,
    "list_checkpoints": Scope.JOBS_READ,
    "list_logs": Scope.JOBS_READ,
    "list_metrics": Scope.JOBS_READ,
    "list_events": Scope.JOBS_READ,
    "list_safety": Scope.JOBS_READ,
    "stream_job": Scope.JOBS_READ,
    "create_webhook": Scope.JOBS_WRITE,
    "list_webhooks": Scope.JOBS_READ,
    "get_webhook": Scope.JOBS_READ,
    "delete_webhook": Scope.JOBS_WRITE,
    "rotate_webhook": Scope.JOBS_WRITE,
    "test_webhook": Scope.JOBS_WRITE,
    "list_deliveries": Scope.JOBS_READ,
    "download_adapter": Scope.ADAPTERS_READ,
    "create_export": Scope.ADAPTERS_RELEASE,
    "get_export": Scope.ADAPTERS_READ,
    "download_export": Scope.ADAPTERS_READ,
    "create_dataset": Scope.DATASETS_WRITE,
    "list_datasets": Scope.DATASETS_READ,
    "get_dataset": Scope.DATASETS_READ,
    "get_report": Scope.DATASETS_READ,
    "get_rows": Scope.DATASETS_READ,
    "attest_dataset": Scope.DATASETS_WRITE,
    "delete_dataset": Scope.DATASETS_WRITE,
    "list_adapters": Scope.ADAPTERS_READ,
    "get_adapter": Scope.ADAPTERS_READ,
    "request_review": Scope.REVIEWS_DECIDE,
    "approve_adapter": Scope.ADAPTERS_RELEASE,
    "release_adapter": Scope.ADAPTERS_RELEASE,
    "reject_adapter": Scope.ADAPTERS_RELEASE,
    "list_reviews": Scope.JOBS_READ,
    "get_review": Scope.JOBS_READ,
    "approve_review": Scope.REVIEWS_DECIDE,
    "reject_review": Scope.REVIEWS_DECIDE,
    "find_row": Scope.DATASETS_READ,
    "create_upload": Scope.DATASETS_WRITE,
    "create_upload_part": Scope.DATASETS_WRITE,
    "complete_upload": Scope.DATASETS_WRITE,
    "cancel_upload": Scope.DATASETS_WRITE,
    "download_file": Scope.DATASETS_READ,
    "get_models": None,
    "get_model": None,
    "create_model": Scope.ADMIN,
    "get_usage": Scope.JOBS_READ,
    "list_workers": Scope.ADMIN,
    "list_deletions": Scope.AUDIT_READ,
    "get_deletion": Scope.AUDIT_READ,
    "list_audit": Scope.AUDIT_READ,
    "create_key": Scope.KEYS_MANAGE,
    "list_keys": Scope.KEYS_MANAGE,
    "revoke_key": Scope.KEYS_MANAGE,
    "rotate_key": Scope.KEYS_MANAGE,
    "get_openapi": None,
    # The dashboard's pages, which show what the routes above return.
    "show_start": None,
    "show_sign_in": None,
    "show_session": None,
    "show_docs": None,
    "show_jobs": Scope.JOBS_READ,
    "show_new_job": Scope.JOBS_WRITE,
    "show_job": Scope.JOBS_READ,
    "show_reviews": Scope.JOBS_READ,
    "show_datasets": Scope.DATASETS_READ,
    "show_dataset": Scope.DATASETS_READ,
}
"""By the name of the route's function; None: any valid key."""


def check_scope(identity: Identity, route_name: str) -> None:
    """Raises Forbidden, with the scope's name. A route without a declaration takes an admin's key."""
    scope = SCOPES.get(route_name, Scope.ADMIN)
    if scope is not None and not identity.may(scope):
        raise Forbidden(
            "missing_scope",
            f"this takes a key with the scope {scope}",
            param="Authorization",
            scope=scope,
            remedy="Ask whoever manages your keys, or the operator: `medtune keys create --scope`.",
        )
