"""The text that a context begins as."""

from collections.abc import Sequence

from dpfpl_common.errors import ModelError

__all__ = ["repeated_to_the_left"]


def repeated_to_the_left(ids: Sequence[int], text: str, num_context: int) -> list[int]:
    """The ids of ``text``, repeated to the left until they fill the context, [num_context]; none for an empty text.

    The text itself always stands whole at the end.

    Raises:
        ModelError: INIT_TEXT_TOO_LONG, the text is longer than the context.
    """
    if len(ids) > num_context:
        raise ModelError(
            code="INIT_TEXT_TOO_LONG",
            message=f"The initial text {text!r} has {len(ids)} tokens, the context only {num_context} vectors.",
            advice="Raise prompt.num_context or shorten prompt.init_text.",
        )
    return [ids[-1 - i % len(ids)] for i in range(num_context)][::-1] if ids else []
