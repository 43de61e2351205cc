"""The base class of the config's sections, and the section that names a data set."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """Base class of all sections: unknown keys are errors, and values cannot change after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSource(Section):
    """A data set: a file or an embedded set, whole or in part. A string in its place is its path."""

    path: str = Field(description="JSON or JSONL file, or an embedded set: hpo:seeds, hpo:supervised, hpo:evaluation")
    name: str = Field("", description="name in reports; '' = the file's stem")
    limit: int = Field(0, ge=0, description="take the first N items; 0 = all")


def _path_to_source(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


Source = Annotated[DataSource, BeforeValidator(_path_to_source)]
