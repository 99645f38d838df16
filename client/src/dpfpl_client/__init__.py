"""What a site installs: the thin Flower ClientApp and, with the extra ``[agent]``, the site agent."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpfpl_client.use.prompt import load_prompt

__all__ = ["load_prompt"]


def __getattr__(name: str) -> Any:
    if name == "load_prompt":  # torch takes seconds, and a SuperNode has none
        from dpfpl_client.use.prompt import load_prompt

        return load_prompt
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
