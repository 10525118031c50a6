"""What a tenant's jobs took."""

import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import AwareDatetime

from api.dependencies import Caller, TransactionDep
from api.pages import ReadModel
from jobs.errors import InvalidRequest
from jobs.repository import usage
from jobs.scopes import Scope

router = APIRouter(prefix="/usage", tags=["usage"])

_DEFAULT_TIME = datetime.timedelta(days=30)
_COLUMNS = {"key": usage.KEY, "model": usage.MODEL, "status": usage.STATUS}
_GROUPS = r"^(key|model|status|tag:[^\x00]{1,64})$"


class UsageTotals(ReadModel):
    jobs: int
    """Those with an attempt within the time."""
    attempts: int
    gpu_hours: float
    """Of attempts, from their start to their end, times the GPUs that they held."""
    cpu_hours: float
    """Of attempts that trained without a GPU."""
    tokens: int
    """Trained on; also those that an attempt after a crash trained on again."""


class UsageGroup(UsageTotals):
    value: str | None
    """A key's id, the tag's value, a model's id, or a status; null: jobs without that tag."""
    name: str | None = None
    """Of the key."""


class UsageRead(ReadModel):
    object: Literal["usage"] = "usage"
    since: datetime.datetime
    until: datetime.datetime
    group_by: str
    data: list[UsageGroup]
    """The one with the most GPU hours first."""
    total: UsageTotals


@router.get("", summary="GPU hours per key, tag, model or status")
def get_usage(
    transaction: TransactionDep,
    since: Annotated[
        AwareDatetime | None, Query(description="With a time zone. Without: 30 days before `until`.")
    ] = None,
    until: Annotated[AwareDatetime | None, Query(description="With a time zone. Without: now.")] = None,
    group_by: Annotated[
        str,
        Query(
            pattern=_GROUPS,
            description="`key`, `model`, `status`, or `tag:NAME`: the values of `metadata` under that name.",
            examples=["key", "tag:team"],
        ),
    ] = "key",
) -> UsageRead:
    """Of the own tenant, from its attempts. One that lies partly within the time counts with that part, one that still
    runs until now. By key, whoever may not manage keys sees the own one only. 422 when `since` is not before `until`.
    """
    until = until or datetime.datetime.now(datetime.UTC)
    try:
        since = since or until - _DEFAULT_TIME
    except OverflowError:
        since = until
    if since >= until:
        raise InvalidRequest("invalid_field", "since: it is not before until", param="since")
    with transaction as caller:
        data = _list_groups(caller, group_by, since, until)
    names = UsageTotals.model_fields
    total = UsageTotals.model_validate({name: sum(getattr(group, name) for group in data) for name in names})
    return UsageRead(since=since, until=until, group_by=group_by, data=data, total=total)


def _list_groups(caller: Caller, group_by: str, since: datetime.datetime, until: datetime.datetime) -> list[UsageGroup]:
    is_by_key = group_by == "key"
    only = caller.identity.key_id if is_by_key and not caller.identity.may(Scope.KEYS_MANAGE) else None
    column: Any = _COLUMNS.get(group_by)
    if column is None:
        column = usage.get_tag(group_by.removeprefix("tag:"))
    rows = usage.list_usage(caller.session, column, since=since, until=until, key_id=only)
    names = usage.list_key_names(caller.session, caller.identity.tenant_id) if is_by_key else {}
    return [UsageGroup(**row._mapping, name=names.get(row.value)) for row in rows]
