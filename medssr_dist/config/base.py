"""The base class of the config's sections, and the sections that name a data set."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

_NOT_IN_URL = set(' \\"<>^`{|}')
_LARGEST = 10**12  # of any number: in seconds 30,000 years, in tokens more than any model has read


class Section(BaseModel):
    """Base class of all sections: unknown keys are errors, numbers finite, and values cannot change."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_values(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic would read true as 1, and YAML reads yes, no, on and off as true and false."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        kinds = {annotation, *get_args(annotation)}
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise ValueError(f"a number is needed here, not {str(value).lower()} (yes, no, on and off are read so too)")
        return value

    @model_validator(mode="after")
    def _refuse_huge_numbers(self) -> Self:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, int | float) and abs(value) > _LARGEST:
                raise ValueError(f"{name} is a number beyond 10^12; correct it")
        return self


def check_base_url(text: str) -> str:
    """Return the address of an API. The messages do not repeat it: it may hold a password."""
    try:
        url = urlsplit(text)
        has_host = bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        raise ValueError("it is not of the form https://host/v1; correct it") from None
    if url.username is not None or url.password is not None:
        raise ValueError("it holds a user name or a key; give the key as api_key")
    if url.query or url.fragment or "?" in text or "#" in text:
        raise ValueError("it holds a query (from ? or # on); remove that, and give a key as api_key")
    if url.scheme not in ("http", "https") or not has_host or not text.isprintable() or set(text) & _NOT_IN_URL:
        raise ValueError("it is not of the form https://host/v1; correct it")
    return text


BaseUrl = Annotated[str, AfterValidator(check_base_url)]  # of an HTTP API, without a secret


class Columns(Section):
    """The columns of a data set, where they are not recognised. A dot goes into an object: 'data.Question'."""

    question: str = Field("", description="column of the question's text; '' = recognised by its name")
    options: str | list[str] = Field(
        "",
        description="column that holds all options (list, object, or one of these as JSON text), or a list of columns "
        "with an option each, in the order A, B, C...; '' = recognised",
    )
    answer: str = Field(
        "", description="column of the right answer: letter, text of the option, or number; '' = recognised"
    )
    answer_from: Literal[0, 1] | None = Field(
        None, description="number of option A in the column of the answer; null = as the whole data set shows"
    )
    rare: str = Field("", description="column that says which questions are about a rare disease, like `rare`")
    topic: str = Field("", description="column of the subject; '' = recognised")
    id: str = Field("", description="column of the item's id; '' = recognised")

    @model_validator(mode="after")
    def _refuse_number_without_column(self) -> Columns:
        if self.answer_from is not None and not self.answer:
            raise ValueError("answer_from needs `answer`, the column of the numbers; name it too")
        return self


class PathSource(Section):
    """What data sets and corpora have in common."""

    path: str = Field(description="where the data are")
    name: str = Field("", description="name in reports; '' = the file's stem")
    limit: int = Field(0, ge=0, description="take the first N items; 0 = all")

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the keys that are not set and that run directories of earlier versions do not have."""
        fields = type(self).model_fields
        return {
            key: value
            for key, value in serialize(self).items()
            if key in ("path", "name", "limit") or value != fields[key].default
        }


class SplitSource(PathSource):
    """What can be a part of a folder or of a data set on the Hugging Face hub."""

    split: str = Field(
        "", description="split of a folder or Hugging Face id, e.g. test or 'train[:500]'; '' = the only one there"
    )
    subset: str = Field("", description="subset (configuration) of a folder or Hugging Face id; '' = the only one")
    revision: str = Field(
        "", description="commit, tag or branch of the Hugging Face id; '' = the one in the local cache, else the newest"
    )


class DataSource(SplitSource):
    """A data set of questions, whole or in part. A string in its place is its path."""

    path: str = Field(
        description="file (JSON, JSONL, CSV, TSV, Parquet, Arrow; also .gz, .zst, .xz, .bz2), folder of such files, "
        "Hugging Face id (owner/name, or hf://datasets/OWNER/NAME[@REVISION][/FILE]), or an embedded set: hpo:seeds, "
        "hpo:supervised, hpo:evaluation; for the mini policy hpo:mini-seeds, hpo:mini-supervised, hpo:mini-evaluation",
    )
    name: str = Field("", description="name in reports; '' = the file's stem, or the name on the hub")
    shuffle: bool = Field(
        False, description="put the items in an order drawn with runtime.random_seed before `limit` takes the first N"
    )
    columns: Columns | None = Field(
        None, description="which column is what, e.g. {question: stem, answer: key}; null = recognised by their names"
    )
    unusable: Literal["refuse", "skip"] = Field(
        "refuse",
        description="what becomes of items that cannot be used (an image, an empty option): refuse = the whole data "
        "set is refused; skip = they are left out, and counted in the log",
    )
    rare: bool | str | None = Field(
        None,
        description="which questions are about a rare disease: true = all, false = none, auto = those whose stem or "
        "right option names a disease of the rare list, otherwise the column of the data set that says so; null = as "
        "our own records and the embedded sets say, for other data sets unknown",
    )
    questions: int = Field(0, ge=0, description="number of questions that the data set must have; 0 = any")
    origin: str = Field(
        "",
        description="where `medssr prefetch` downloads the file if it is absent: https://..., or "
        "hf://datasets/OWNER/NAME, whose only JSON file it is; '' = nowhere",
    )
    git_blob: str = Field("", description="git's SHA-1 of the file at `origin`, to check a download; '' = not checked")

    @model_validator(mode="after")
    def _refuse_unfit(self) -> DataSource:
        if not self.path:
            raise ValueError("path is empty; give a file, a folder, a Hugging Face id or an embedded set")
        if self.columns and self.columns.rare and self.rare is not None:
            raise ValueError(f"rare = {self.rare!r} and columns.rare = {self.columns.rare!r} say the same; keep one")
        if self.path.startswith("hpo:"):
            fields = type(self).model_fields
            keys = ("split", "subset", "revision", "shuffle", "columns", "unusable", "questions", "origin", "git_blob")
            if given := [key for key in keys if getattr(self, key) != fields[key].default]:
                raise ValueError(f"{given[0]} has no meaning for the embedded set {self.path!r}; remove it")
        return self


def _path_to_source(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


Source = Annotated[DataSource, BeforeValidator(_path_to_source)]
