"""What every section of the config is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values cannot change after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSource(Section):
    """A data set: a file path or an embedded set, and how much of it."""

    path: str = Field(description="JSON or JSONL file, or an embedded set: hpo:seeds, hpo:supervised, hpo:evaluation")
    name: str = Field("", description="name in reports; '' = the file's stem")
    limit: int = Field(0, ge=0, description="take the first N items; 0 = all")


def _as_source(value):
    return {"path": value} if isinstance(value, str) else value


Source = Annotated[DataSource, BeforeValidator(_as_source)]
