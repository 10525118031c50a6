"""The shape of every list, and what all schemas of answers have in common."""

from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

Item = TypeVar("Item")


class ReadModel(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class Page(ReadModel, Generic[Item]):
    """A page of a list; ask for the next with `after` = the last item's id."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool


class CursorPage(Page[Item], Generic[Item]):
    """A page of what happened, oldest first; ask for what came later with `after` = cursor."""

    cursor: int
