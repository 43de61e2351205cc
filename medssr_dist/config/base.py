"""The base class of the config's sections, and the section that names a data set."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer


class Section(BaseModel):
    """Base class of all sections: unknown keys are errors, and values cannot change after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSource(Section):
    """A data set: a file or an embedded set, whole or in part. A string in its place is its path."""

    path: str = Field(
        description="JSON or JSONL file, or an embedded set: hpo:seeds, hpo:supervised, hpo:evaluation; for the mini "
        "policy hpo:mini-seeds, hpo:mini-supervised, hpo:mini-evaluation"
    )
    name: str = Field("", description="name in reports; '' = the file's stem")
    limit: int = Field(0, ge=0, description="take the first N items; 0 = all")
    rare: bool | str | None = Field(
        None,
        description="which questions are about a rare disease: true = all, false = none, auto = those whose stem or "
        "right option names a disease of the rare list, otherwise the column of the file that says so; null = as our "
        "own records and the embedded sets say, for other files unknown",
    )
    questions: int = Field(0, ge=0, description="number of questions that the file must have; 0 = any")
    origin: str = Field(
        "",
        description="where `medssr prefetch` downloads the file if it is absent: https://..., or "
        "hf://datasets/OWNER/NAME, whose only JSON file it is; '' = nowhere",
    )
    git_blob: str = Field("", description="git's SHA-1 of the file at `origin`, to check a download; '' = not checked")

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the keys that are not set and that run directories of earlier versions do not have."""
        fields = type(self).model_fields
        return {
            key: value
            for key, value in serialize(self).items()
            if key in ("path", "name", "limit") or value != fields[key].default
        }


def _path_to_source(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


Source = Annotated[DataSource, BeforeValidator(_path_to_source)]
