"""The errors that a user, a site administrator or an operator can cause.

::

    DpfplError
    +-- ConfigError       experiment.toml, site.toml or policy.toml is wrong
    +-- DataError         a site's images cannot be used
    +-- ModelError        the vision-language model cannot be loaded or used
    +-- PayloadError      a message has the wrong names, shapes, dtypes or values
    +-- PrivacyError      what was asked has no sound privacy analysis, or randomness is missing
    +-- RefusedError      the site's agent refuses a request (policy, ledger, protocol)
    +-- StateError        what lies on disk is damaged, locked or belongs to something else
    +-- DeploymentError   a process, a port or a certificate stands in the way
    +-- RoundError        a federated round cannot be completed

Every error has a stable ``code``, a ``message`` that names what was wrong and an ``advice`` that says what to do.
"""

__all__ = [
    "ConfigError",
    "DataError",
    "DeploymentError",
    "DpfplError",
    "ModelError",
    "PayloadError",
    "PrivacyError",
    "RefusedError",
    "RoundError",
    "StateError",
]


class DpfplError(Exception):
    """Something a user can cause and can correct.

    Args:
        code: stable, upper case, for scripts (``UNKNOWN_KEY``).
        message: what was wrong, naming the thing and its value.
        advice: what to do about it.
    """

    def __init__(self, *, code: str, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.message} {self.advice}".strip() + f" [{self.code}]"


class ConfigError(DpfplError):
    """A configuration file is missing, unreadable or says something impossible."""


class DataError(DpfplError):
    """A site's images or labels cannot be used."""


class ModelError(DpfplError):
    """The vision-language model cannot be loaded or used."""


class PayloadError(DpfplError):
    """A message has the wrong names, shapes, dtypes or values."""


class PrivacyError(DpfplError):
    """What was asked has no sound privacy analysis, or the randomness for it is missing."""


class RefusedError(DpfplError):
    """The site's agent refuses a request; the text never says anything about the data.

    Args:
        rule: the rule that was broken, by its name in policy.toml or in the protocol; the message ends with it.
    """

    def __init__(self, *, code: str, message: str, rule: str = "", advice: str = "") -> None:
        message = f"{message.removesuffix('.')} (rule {rule})." if rule else message
        super().__init__(code=code, message=message, advice=advice)
        self.rule = rule


class StateError(DpfplError):
    """What lies on disk is damaged, locked or belongs to something else."""


class DeploymentError(DpfplError):
    """A process, a port or a certificate stands in the way."""


class RoundError(DpfplError):
    """A federated round cannot be completed."""
