"""GuardConfig: where the guard model is and how it is asked. Set by the operator, never by a client. Torch-free."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, HttpUrl, ValidationError

from trainer_core.config import ConfigModel
from trainer_core.errors import ConfigurationError

MAX_ROUND_SECONDS = 540.0
"""The other ranks wait for the verdicts, and NCCL gives up on a rank after ten minutes."""


def _check_url(url: HttpUrl) -> HttpUrl:
    if url.username or url.password or url.query or url.fragment:
        raise ValueError("no name, password, query or fragment may stand in it; a key belongs into the key file")
    return url


class GuardConfig(ConfigModel):
    """A guard model at an OpenAI-compatible endpoint, which judges answers beside the rules."""

    url: Annotated[HttpUrl, AfterValidator(_check_url)]
    """What stands before `/chat/completions`."""
    model: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[!-~]+$")]
    """The model's name there."""
    key_file: Annotated[Path, AfterValidator(Path.absolute)] | None = None
    """File with the endpoint's API key. It is read when the guard is asked, and stands nowhere else."""
    ignored: tuple[str, ...] = ("S6",)
    """Categories that make no answer unsafe. S6 of Llama Guard 3 and 4, "specialized advice", is all of medicine."""
    concurrency: Annotated[int, Field(ge=1, le=64)] = 8
    """Requests at once."""
    request_seconds: Annotated[float, Field(gt=0, le=MAX_ROUND_SECONDS)] = 30
    """For one verdict."""
    round_seconds: Annotated[float, Field(gt=0, le=MAX_ROUND_SECONDS)] = 300
    """For all verdicts of a round."""

    @property
    def endpoint(self) -> str:
        return f"{str(self.url).rstrip('/')}/chat/completions"

    def load_key(self) -> str | None:
        """Raises ConfigurationError and OSError; neither tells the content."""
        if self.key_file is None:
            return None
        key = self.key_file.read_bytes().strip().decode("latin-1")
        if not (key.isascii() and key.isprintable() and key and " " not in key):
            message = f"{self.key_file} holds no key: that is one line of ASCII without spaces"
            raise ConfigurationError("guard_key", message, remedy="Write the endpoint's API key into it.")
        return key


def parse_guard(values: dict[str, Any], *, prefix: str = "") -> GuardConfig:
    """Raises ConfigurationError, which names `prefix` and the field, and never the value: a URL may hold a password."""
    try:
        return GuardConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = f"{prefix}{first['loc'][0]}"
        raise ConfigurationError(
            "safety_guard",
            f"{field.upper() if prefix else field}: {first['msg']}",
            remedy="Name the endpoint as in http://guard:8000/v1, and the model as that endpoint calls it.",
            field=field,
        ) from None
