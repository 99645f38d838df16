"""Where a frozen model computes: its device, and what it rounds to there.

Only the model is there. Image rows, contexts, gradients, clipping, noise and prompts are float32 or float64 on the
processor whatever is chosen, so the choice changes neither sensitivity nor noise: rounding moves an example's gradient
before it is clipped.
"""

from typing import Final

import torch

from dpfpl_common.errors import ModelError

__all__ = ["CPU", "device_named", "share_of_memory"]

CPU: Final = torch.device("cpu")


def device_named(name: str | torch.device) -> torch.device:
    """The device ``cpu``, ``cuda`` or ``cuda:1``, ready to compute on.

    Raises:
        ModelError: DEVICE_NOT_THERE.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (AssertionError, RuntimeError) as error:  # torch without CUDA asserts, without a driver it raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
        raise ModelError(
            code="DEVICE_NOT_THERE",
            message=f"torch {torch.__version__} cannot compute on {str(name)!r}: {reason}.",
            advice='Use device = "cpu", or install a torch that was built for this machine\'s GPU and its driver.',
        ) from None
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # image towers begin with a convolution, which would round to ten bits
    return device


def share_of_memory(device: torch.device, at_least: int) -> int:
    """Bytes that one store may fill: on a GPU a quarter of what is free there now; elsewhere ``at_least``."""
    if device.type != "cuda":
        return at_least
    free, _ = torch.cuda.mem_get_info(device)
    return max(at_least, free // 4)
