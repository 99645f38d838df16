"""The ClientApp of an empty round: answers at once with nothing."""

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

__all__ = ["app"]

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Answer with nothing."""
    return Message(RecordDict(), reply_to=message)
