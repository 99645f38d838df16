"""What an agent answers, whether over its RPC or in the same process."""

from typing import Protocol

from dpfpl_common.payload import EvaluateRequest, SiteReply, TrainRequest

__all__ = ["Agent"]


class Agent(Protocol):
    """The data plane of a site agent: the only calls that the operator-pushable side can make."""

    def train(self, request: TrainRequest) -> SiteReply:
        """Take part in a round. Raises RefusedError, with a stable code, where policy or protocol forbids it."""
        ...

    def evaluate(self, request: EvaluateRequest) -> SiteReply:
        """Report the accuracies of the final prompt, as far as policy lets them out."""
        ...
