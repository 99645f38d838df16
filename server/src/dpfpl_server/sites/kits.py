"""A kit as one file: an archive whose modes are right, with its checksum beside it."""

import hashlib
import io
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "KIT_FILES",
    "STARTING_POLICY",
    "Kit",
    "pack_kit",
    "starting_policy",
    "write_kit",
    "write_private",
    "write_public",
]


# The kit: the folder that an operator hands to one site, and all that the site needs to join.


KIT_FILES = ("ca.crt", "node.pub", "site.toml", "policy.toml", "README.txt")
"""Of a site that made its keys itself; other kits hold node.key and agent.key as well."""

_SITE = """\
# What this site is and where its things are. Relative paths start from this file's folder.
name = {name}
model = "embedded"            # a Hugging Face id, a folder, "embedded"; for questions a generative one: "embedded-vlm"
state = "state"               # personal prompt, privacy ledger and logs; keep it, and back it up

[data]
source = "folder"             # folder | csv | questions | huggingface | digits | shapes
path = "/path/to/images"      # a folder train/<class>/* and test/<class>/* or <class>/*, a .csv or a .jsonl file

[server]
address = {address}
ca_certificate = "ca.crt"
node_key = "node.key"

[agent]
address = "unix:state/agent.sock"
key = "agent.key"             # signs what the agent sends; only the agent's user may read it (mode 0600)

# [compute]                   # where the model computes: uncomment for a GPU (docs/reference/models.md)
# device = "cuda"             # cpu | cuda | cuda:1
# precision = "bfloat16"      # float32 | bfloat16: half the memory, for models that answer questions
# picture_memory = 2000       # MB that such a model holds of pictures between steps: more is faster
"""

STARTING_POLICY = """\
# What this site allows. Only you change this file; the operator can neither read nor change it.
# Without this file, or with a mistake in it, the agent refuses every request.

# "*" allows any experiment within the limits below. With an empty list you approve each one yourself, after you have
# seen what it costs: dpfpl-client approve --pending.
experiments = ["*"]

# How much privacy one experiment may cost (epsilon). Smaller protects more; a request beyond it is refused. Leave some
# room over what the operator asks for: a round that is interrupted by a crash is paid for again when it is repeated.
max_epsilon_per_experiment = 10.0

# How much all experiments on this data may cost together, for as long as the data exist.
max_epsilon_lifetime = 20.0

# How much the messages of one experiment may tell the operator of the server.
max_epsilon_operator = 20.0

# How much the messages of all experiments together may tell that operator, or several operators together.
max_epsilon_operator_lifetime = 40.0

# The chance with which the epsilon guarantee may fail. Keep it well below 1 / (your number of images).
delta = 1e-5

# Who may see what. "local": your site adds enough noise for itself. "distributed": your site adds its share before
# anything leaves. "secure": its share, under masks, so that the operator learns sums alone; an operator that invents
# sites could read yours. "central" would show the operator sums without noise: only with your explicit consent.
trust = ["distributed", "local"]

# What is protected: "example", single images. "site" protects your data set as a whole towards other sites, but the
# prompt that your site learns is then trained without noise and must never leave it.
units = ["example"]

# Ways of adding noise that you accept: in every training step, or once, to sums of image features, before training.
mechanisms = ["per_step", "one_shot"]

# The least noise, relative to the influence of one image, that a request may ask for.
min_noise_multiplier = 0.3

# The largest influence (norm) that one image may have.
max_clipping_norm = 10.0

# The most rounds one experiment may take. How often may be asked is limited as well: dpfpl-client policy show.
max_rounds = 500

# What may leave of how well prompts do on held-back images: none | noised (within the same epsilon).
metrics = "noised"
"""

_TRUST = 'trust = ["distributed", "local"]'


def starting_policy(*, enrolled: bool) -> str:
    """The policy.toml of a kit; sites that enrolled may take part in secure sums."""
    secure = 'trust = ["distributed", "local", "secure"]'
    return STARTING_POLICY.replace(_TRUST, secure) if enrolled else STARTING_POLICY


_README = """\
This folder lets the site {name} join the federation at {address}. {keys}
1. Install dpfpl-client with its agent:  pip install "dpfpl-client[agent]"
2. Open site.toml and set [data] path to your images; open policy.toml and decide what you allow.
3. Check it, nothing is sent:  dpfpl-client check --site site.toml
4. Take part until you press Ctrl-C:  dpfpl-client start --site site.toml
5. See what was released:  dpfpl-client ledger show --site site.toml
"""


_KEYS_MADE_HERE = """Keep node.key and agent.key secret (mode
0600). The operator made them and could speak as this site; with dpfpl-client enroll a site makes its own."""
_KEYS_AT_THE_SITE = """It holds no
secret; it belongs where dpfpl-client enroll made the site's keys: dpfpl-client init --kit KIT --into FOLDER."""


@dataclass(frozen=True)
class Kit:
    """What goes into one site's folder; without private keys where the site made its own."""

    name: str
    address: str
    ca_certificate: bytes
    node_public: bytes
    node_private: bytes = b""
    agent_private: bytes = b""

    @property
    def enrolled(self) -> bool:
        """Whether the site made its keys itself."""
        return not self.node_private


def write_kit(kit: Kit, folder: Path) -> None:
    """Write the kit; files that the site may have edited (site.toml, policy.toml) are kept where they exist."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    write_public(folder / "ca.crt", kit.ca_certificate)
    write_public(folder / "node.pub", kit.node_public)
    facts = {"name": kit.name, "address": kit.address}
    keys = _KEYS_AT_THE_SITE if kit.enrolled else _KEYS_MADE_HERE
    write_public(folder / "README.txt", _README.format(**facts, keys=keys).encode())
    quoted = {key: json.dumps(value) for key, value in facts.items()}
    policy = starting_policy(enrolled=kit.enrolled)
    for name, text in (("site.toml", _SITE.format(**quoted)), ("policy.toml", policy)):
        if not (folder / name).exists():
            write_public(folder / name, text.encode())
    if kit.enrolled:
        return
    write_private(folder / "agent.key", kit.agent_private)
    write_private(folder / "node.key", kit.node_private)


def write_public(path: Path, content: bytes) -> None:
    """Replace a file at once, so that no reader sees half of it."""
    _replace(path, content, 0o644)


def write_private(path: Path, content: bytes) -> None:
    """Replace a file that only its owner may ever read, from its first byte on."""
    _replace(path, content, 0o600)


def _replace(path: Path, content: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.chmod(mode)
    temporary.replace(path)


def pack_kit(kit: Path, archive: Path) -> None:
    """Pack a kit's folder as tar.gz, and write its SHA-256 beside it as ``sha256sum -c`` reads it.

    It may hold private keys: only its owner can read it, and every member keeps its file's mode. Owners and times are
    left out.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.PAX_FORMAT) as packed:
        folder = tarfile.TarInfo(kit.name)
        folder.type, folder.mode = tarfile.DIRTYPE, 0o700
        packed.addfile(folder)
        for path in sorted(path for path in kit.iterdir() if path.is_file()):
            content = path.read_bytes()
            member = tarfile.TarInfo(f"{kit.name}/{path.name}")
            member.size, member.mode = len(content), path.stat().st_mode & 0o777
            packed.addfile(member, io.BytesIO(content))
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    write_private(archive, buffer.getvalue())
    write_public(archive.with_name(f"{archive.name}.sha256"), f"{digest}  {archive.name}\n".encode())
