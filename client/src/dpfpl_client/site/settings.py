"""What a site says about itself: site.toml as frozen values."""

import dataclasses
import os
from dataclasses import field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from dpfpl_client.data.settings import BUILT_IN, DataSettings
from dpfpl_common.config import ImpossibleError, build, matching, read_toml, settings
from dpfpl_common.errors import ConfigError
from dpfpl_common.experiment import Precision, SiteName

__all__ = [
    "AgentSettings",
    "ComputeSettings",
    "MonitoringSettings",
    "ServerSettings",
    "SimulationSettings",
    "SiteSettings",
    "UserSettings",
    "load_site",
]


@settings
class ServerSettings:
    """How the SuperNode reaches the operator's server; paths are relative to site.toml.

    Attributes:
        address: host and port, as in the kit: ``fl.example.org:9092``.
        ca_certificate: the federation's authority.
        node_key: this site's key for the connection.
        poll_s: seconds between two questions for messages; a federation of hundreds of sites needs more than 1.
    """

    address: str = ""
    ca_certificate: str = "ca.crt"
    node_key: str = "node.key"
    poll_s: Annotated[float, Field(ge=0.05, le=60)] = 1.0


@settings
class AgentSettings:
    """How the agent is reached, and what it uses.

    Attributes:
        address: where it listens: ``unix:PATH``, or ``HOST:PORT`` on a loopback or private address.
        key: signs its replies; relative to site.toml, for the agent's user alone (mode 0600).
        aggregation_key: signs its part of secure sums, where there is one; as ``key``.
        peers: file with the fingerprints of other sites' aggregation keys.
        threads: processor cores that it uses.
    """

    address: str = "unix:state/agent.sock"
    key: str = "agent.key"
    aggregation_key: str = "aggregation.key"
    peers: str = "peers.toml"
    threads: Annotated[int, Field(ge=1)] = 1


@settings
class ComputeSettings:
    """Where this site's model computes, and how it rounds; neither changes what is clipped to, nor the noise.

    Attributes:
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        precision: ``float32``; ``bfloat16`` halves the memory of a generative model.
        picture_memory: MB for what a generative model holds of pictures between steps, so as not to compute it again;
            0: 256 MB, on a GPU a quarter of the memory that is free there.
    """

    device: Annotated[str, matching(r"cpu|cuda(:\d{1,2})?", "cpu, cuda, or cuda:1 for the second GPU")] = "cpu"
    precision: Precision = "float32"
    picture_memory: Annotated[int, Field(ge=0)] = 0


@settings
class UserSettings:
    """The users that agent and SuperNode run as if root starts them; both empty: the user who starts them.

    Attributes:
        agent: owns images, policy, ledger and prompt.
        node: holds the connection and runs the operator's code.
    """

    agent: str = ""
    node: str = ""

    def __post_init__(self) -> None:
        if bool(self.agent) != bool(self.node):
            key = "node" if self.agent else "agent"
            raise ImpossibleError(key, "", "a user, as the other is one; or remove [users]")


@settings
class MonitoringSettings:
    """Health and metrics over HTTP.

    Attributes:
        address: where the agent shows them, such as ``127.0.0.1:9465``; empty: nowhere.
        public: accept an address that other machines reach; only for a container's own network.
    """

    address: str = ""
    public: bool = False


@settings
class SimulationSettings:
    """Reproducible randomness, for built-in public data only: a seed undoes all privacy."""

    seed: int


@settings
class SiteSettings:
    """One site.

    Attributes:
        name: as the operator provisioned it.
        data: where its labelled images are.
        model: "embedded", a folder or a Hugging Face id; a folder beside site.toml comes before an id.
        state: folder for prompt, ledger and caches.
        policy: the site's policy file.
        registry: folder outside the state folder that remembers how far each privacy ledger of this machine had come
            and which images it charges; see ``registry_folder`` for the default.
        offline: never fetch a model from a hub. Uploads have a rule of their own, ``publish`` in policy.toml.
        server: how to reach the operator's server.
        agent: where the agent listens.
        compute: where the model computes.
        users: the two users that agent and SuperNode run as, if they are kept apart.
        monitoring: where it shows its health and metrics.
        usual_mix: share of images that predict and serve expect from this site's usual mix of classes, from 0 to below
            1; none: as the experiment says.
        simulation: seeded randomness; refused unless the data is a built-in public set.
        folder: where site.toml lies; relative paths start there.
    """

    name: SiteName
    data: DataSettings
    model: str = "embedded"
    state: str = "state"
    policy: str = "policy.toml"
    registry: str = ""
    offline: bool = True
    server: ServerSettings = field(default_factory=ServerSettings)
    agent: AgentSettings = field(default_factory=AgentSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    users: UserSettings = field(default_factory=UserSettings)
    monitoring: MonitoringSettings = field(default_factory=MonitoringSettings)
    usual_mix: Annotated[float | None, Field(ge=0, le=0.999)] = None
    simulation: SimulationSettings | None = None
    folder: str = "."

    def __post_init__(self) -> None:
        if self.simulation is not None and self.data.source not in BUILT_IN:
            raise ConfigError(
                code="PRIVATE_DATA_NEEDS_REAL_NOISE",
                message="site.toml has a [simulation] seed, but the data is not a built-in public set.",
                advice="Remove [simulation]: seeded noise protects nobody.",
            )

    def path(self, relative: str) -> Path:
        """A path of site.toml, made absolute. Links stay links: the policy must not be one."""
        return (Path(self.folder) / Path(relative).expanduser()).absolute()

    @property
    def state_folder(self) -> Path:
        """The absolute state folder."""
        return self.path(self.state)

    @property
    def registry_folder(self) -> Path:
        """The absolute folder of the registry.

        Where site.toml names none: DPFPL_REGISTRY, else this user's folder for state, so that all sites of a machine
        share one. With built-in public data, where nobody is to be protected and the same images serve many trials,
        and where agent and SuperNode run as users of their own: beside the state folder.
        """
        folder = self._registry()
        if folder == self.state_folder or self.state_folder in folder.parents:
            raise ConfigError(
                code="REGISTRY_IN_STATE",
                message=f"The registry {folder} lies in the state folder, with which it would be restored.",
                advice="Name another folder: registry in site.toml, or DPFPL_REGISTRY.",
            )
        return folder

    def _registry(self) -> Path:
        if self.registry:
            return self.path(self.registry)
        if self.data.source in BUILT_IN:
            return self.state_folder.with_name(self.state_folder.name + ".registry")
        named = os.environ.get("DPFPL_REGISTRY")
        if named:
            return Path(named).expanduser().absolute()
        if self.separated:  # root's commands and the agent, whose HOME is its state folder, must mean the same one
            return self.state_folder.with_name(self.state_folder.name + ".registry")
        home = os.environ.get("XDG_STATE_HOME")
        return (Path(home) if home else Path.home() / ".local" / "state") / "dpfpl"

    @property
    def agent_address(self) -> str:
        """The agent's address with an absolute socket path; by default in a folder that both users can enter."""
        address = self.agent.address
        if self.separated and address == AgentSettings.address:
            address = "unix:run/agent.sock"
        scheme, _, path = address.partition("unix:")
        return f"unix:{self.path(path)}" if not scheme and path else address

    @property
    def token_file(self) -> Path:
        """The file with the credential that callers of the agent must show."""
        return (self.socket_folder if self.separated else self.state_folder) / "agent.token"

    @property
    def ready_file(self) -> Path:
        """Made by the agent once calls are answered; taken away by whoever starts it."""
        return self.state_folder / "agent.ready"

    @property
    def separated(self) -> bool:
        """Whether agent and SuperNode run as two users."""
        return bool(self.users.agent)

    @property
    def socket_folder(self) -> Path:
        """The folder of the agent's socket, which the SuperNode's group may enter where the two are separated."""
        path = self.agent_address.removeprefix("unix:")
        return Path(path).parent if path.startswith("/") else self.path("run")

    @property
    def node_folder(self) -> Path:
        """Where the SuperNode keeps its files and its log."""
        return self.path("node") if self.separated else self.state_folder


def load_site(path: Path) -> SiteSettings:
    """Read site.toml; errors name the key, the value and what was expected."""
    table = read_toml(path)
    if "folder" in table:
        raise ConfigError(code="UNKNOWN_KEY", message=f"{path.name} has the unknown key 'folder'.", advice="Remove it.")
    site = build(SiteSettings, {**table, "folder": str(path.resolve().parent)}, path.name)
    # Relative paths start from site.toml, not from where a process happens to run; hub ids are no paths.
    if site.model != "embedded" and site.path(site.model).is_dir():
        site = dataclasses.replace(site, model=str(site.path(site.model)))
    if site.data.path and site.data.source != "huggingface":
        site = dataclasses.replace(site, data=dataclasses.replace(site.data, path=str(site.path(site.data.path))))
    return site
