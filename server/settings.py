"""Every setting of the server: a flag, a `PROMPTMUX_` variable and a key of a TOML file.

Owns: names, defaults, where values come from and which source wins (flag, variable, file, default). Must not
know: what a setting does. Read once, by whoever starts the server, and handed on; nothing is read at import.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings.exceptions import SettingsError as SourceError

from prompt_store.redis_url import without_secrets

_HIDDEN = "********"


class SettingsError(Exception):
    """Settings that cannot be used; one line for a person."""


class Settings(BaseSettings):
    """The server's settings."""

    model_config = SettingsConfigDict(
        env_prefix="PROMPTMUX_",
        extra="forbid",
        frozen=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        nested_model_default_partial_update=False,
    )

    config: Path | None = Field(None, description="a TOML file with any of these settings")

    host: str = Field("127.0.0.1", description="address of the public API")
    port: int = Field(8000, ge=0, le=65535, description="port of the public API; 0 picks a free one")
    admin_host: str = Field("127.0.0.1", description="address of the admin API and /metrics")
    admin_port: int = Field(8001, ge=0, le=65535, description="port of the admin API; 0 picks a free one")

    backbone: str = Field("minilm", description="the frozen model: minilm, a folder, or a Hugging Face id")
    backbone_revision: str | None = Field(None, description="revision of a Hugging Face id")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="serving dtype")
    kernels: Literal["auto", "off", "required"] = Field(
        "auto",
        description="on CPUs: compiled attention, packed weights, a recorded model; auto does what it can",
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU cores that run batches, a lane each; default: torch's choice"
    )

    store: str = Field("file://promptmux-store", description="where prompts are kept, as a URL")
    seed_dir: Path | None = Field(
        None, description="a folder of *.safetensors prompt files to publish into an empty store"
    )

    max_batch_tokens: int = Field(4096, ge=16, description="tokens of one batch, virtual ones included")
    max_batch_rows: int = Field(128, ge=1, description="rows of one batch")
    max_batch_seconds: float = Field(
        0.1,
        gt=0,
        description="about how long one batch may take; an eighth of max_batch_tokens always may",
    )
    max_queue_rows: int = Field(
        4096,
        ge=1,
        description="rows accepted and not answered; more get 429. One task gets three quarters at most",
    )
    max_queue_tokens: int = Field(
        1_000_000, ge=16, description="tokens accepted and not answered; more get 429, shared as the rows are"
    )
    prompt_cache_bytes: int = Field(512 * 2**20, ge=0, description="device memory for prompts")
    host_cache_bytes: int = Field(2**30, ge=0, description="host memory for prompt files")
    disk_cache_bytes: int = Field(
        10 * 2**30, ge=0, description="disk space for prompt files in cache_dir; 0 keeps none there"
    )
    cache_dir: Path | None = Field(
        None,
        description="folder for prompt files and the catalogue's snapshot, with which a server starts while its store "
        "is away; default: promptmux-cache, and none for a file:// store, which is a local disk itself",
    )

    max_inputs: int = Field(256, ge=1, description="texts in one request")
    max_text_chars: int = Field(100_000, ge=1, description="characters of one text")
    max_body_bytes: int = Field(4 * 2**20, ge=64, description="bytes of a request body")
    max_prompt_bytes: int = Field(64 * 2**20, ge=64, description="bytes of a prompt file")

    canary_max_errors: int = Field(
        3, ge=0, description="failures of a version after which its alias is moved off it; 0: never"
    )

    request_timeout: float = Field(60.0, gt=0, description="seconds until a request is answered 503")
    body_timeout: float = Field(10.0, gt=0, description="seconds a request's body may take to arrive")
    leave_delay: float = Field(
        0.0,
        ge=0,
        description="seconds after SIGTERM in which requests are still taken and /readyz says 503: a proxy notices",
    )
    drain_timeout: float = Field(30.0, ge=0, description="seconds to finish accepted work after SIGTERM")

    api_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="API keys as name:scopes:sha256, scopes of infer, admin and metrics joined by +",
    )
    api_keys_file: Path | None = Field(None, description="a file with one API key per line")

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe level logged"
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto: console on a terminal, else json"
    )
    access_log: bool = Field(False, description="one log line for each request")
    metrics_tasks: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="tasks that get a metric label of their own; separate by commas"
    )

    @field_validator("api_keys", "metrics_tasks", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        given = [value] if isinstance(value, str) else value
        if isinstance(given, list | tuple) and all(isinstance(item, str) for item in given):
            return tuple(part.strip() for item in given for part in item.split(",") if part.strip())
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.max_inputs > self.max_queue_rows:
            raise ValueError("max_inputs is larger than max_queue_rows: such a request could never be taken")
        return self

    @classmethod
    def load(cls, argv: Sequence[str] = ()) -> Settings:
        """The settings of this process. SettingsError for bad ones; SystemExit for --help and bad flags."""
        try:
            flags = CliSettingsSource[Any](cls, cli_prog_name="promptmux serve", cli_parse_args=list(argv))()
            variables = EnvSettingsSource(cls)()
        except SourceError as error:
            raise SettingsError(str(error)) from None
        path = flags.get("config") or variables.get("config")
        values = {**(_read_file(Path(path)) if path else {}), **variables, **flags}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SettingsError(_explain(error)) from None

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Constructed directly, a Settings holds what it is given: `load` alone looks at the process."""
        return (init_settings,)

    def cache_folder(self) -> Path | None:
        """Where prompt files and the snapshot are kept; None for nowhere."""
        if self.cache_dir is not None:
            return self.cache_dir
        scheme, separator, _ = self.store.partition("://")
        return None if not separator or scheme == "file" else Path("promptmux-cache")

    def key_lines(self) -> list[str]:
        """All API key lines, from the setting and the file. SettingsError when the file cannot be read."""
        lines = list(self.api_keys)
        if self.api_keys_file is not None:
            try:
                lines += self.api_keys_file.read_text("utf-8").splitlines()
            except (OSError, UnicodeDecodeError):
                raise SettingsError("api_keys_file cannot be read") from None
        return lines

    def effective(self) -> dict[str, Any]:
        """What holds, for the log: secrets are hidden."""
        values = self.model_dump(mode="json")
        values["api_keys"] = [f"{key.rpartition(':')[0]}:{_HIDDEN}" for key in self.api_keys]
        values["store"] = without_secrets(self.store)
        return values


def unknown_variables(environment: Iterable[str]) -> list[str]:
    """Names that look like settings of the server and are none."""
    prefix = str(Settings.model_config["env_prefix"])
    known = {prefix + name.upper() for name in Settings.model_fields}
    return sorted(name for name in environment if name.startswith(prefix) and name not in known)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError:
        raise SettingsError(f"config file {path} cannot be read") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"config file {path} is not TOML: {error}") from None
    if "config" in values:
        raise SettingsError("a config file cannot name another one")
    return values


def _explain(error: ValidationError) -> str:
    lines = []
    for one in error.errors(include_url=False, include_input=False):
        name = ".".join(map(str, one["loc"]))
        text = "no such setting" if one["type"] == "extra_forbidden" else one["msg"]
        lines.append(f"{name}: {text}" if name else text)
    return "; ".join(lines)
