"""How the server treats requests."""

from pydantic import Field

from lasa.files.settings import Settings


class ServerSettings(Settings):
    """Limits and defaults of the server; vLLM's server has some of them as well."""

    model_name: str = Field("lasa", description="Name of the model for clients; the folder's name by default")
    max_rows: int = Field(64, ge=1, description="Answers written at the same time")
    max_tokens: int = Field(
        262_144, ge=1, description="Tokens that KV caches may come to hold; a request that needs more is answered alone"
    )
    max_queue: int = Field(256, ge=0, description="Answers that may wait; more are turned away with 429")
    max_new_tokens: int = Field(1024, ge=1, description="Longest answer a request may ask for, and the default")
    temperature: float = Field(0.0, ge=0, description="Temperature where the request does not say")
    max_body: int = Field(1_000_000, ge=1000, description="Bytes of the largest request")
    timeout: float = Field(300.0, gt=0, description="Seconds after which a request is given up, waiting included")
    shutdown_timeout: float = Field(60.0, ge=0, description="Seconds that running answers have when the server stops")
    api_key: str | None = Field(None, description="Key that clients must give; several are separated by commas")
    max_in_flight: int = Field(0, ge=0, description="Requests of one API key at the same time; 0: any number")
    max_per_minute: int = Field(0, ge=0, description="Requests of one API key in a minute; 0: any number")
    log_prompts: bool = Field(False, description="Log conversations and answers, not only decisions")

    @property
    def keys(self) -> list[str]:
        """The API keys; none where none is asked for."""
        return [key.strip() for key in (self.api_key or "").split(",") if key.strip()]
