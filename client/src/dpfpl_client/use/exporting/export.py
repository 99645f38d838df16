"""``dpfpl-client export``: a prompt as a folder for plain transformers and peft, if the site's rules let it go.

Exporting is post-processing of what the ledger already paid for: it charges nothing and computes nothing on images.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from dpfpl_client.agent.audit import AUDIT_FILE, AuditLog
from dpfpl_client.agent.ledger.view import summarise
from dpfpl_client.agent.policy_file import check_use
from dpfpl_client.agent.store import DiskStore
from dpfpl_client.learning.methods import factorise
from dpfpl_client.models.backbone import Backbone
from dpfpl_client.models.dual_encoder import DualEncoder
from dpfpl_client.models.files import model_fingerprint
from dpfpl_client.models.generative.backbone import GenerativeBackbone
from dpfpl_client.site.settings import SiteSettings
from dpfpl_client.use.exporting.adapter import ADAPTER_FILES, NotExpressibleError, build_adapter
from dpfpl_client.use.exporting.card import BaseModel, Facts, classes_usage, generative_usage, model_card, vectors_usage
from dpfpl_client.use.prompt import CLASS_VECTORS, SitePrompt
from dpfpl_client.use.results import chosen_metrics, released_scores
from dpfpl_common.config import to_table
from dpfpl_common.errors import DeploymentError, PrivacyError, RefusedError, StateError
from dpfpl_common.ops.files import write_durably
from dpfpl_common.ops.text import first_line
from dpfpl_models import EMBEDDED, embedded_model_path

__all__ = [
    "OPTIONAL_FILES",
    "Exported",
    "Uploaded",
    "check_publish",
    "export_prompt",
    "push_to_hub",
    "write_export",
]

PRIVATE = 0o600
TEXT_FEATURES = "text_features.safetensors"
OPTIONAL_FILES = (TEXT_FEATURES, CLASS_VECTORS, *ADAPTER_FILES)
"""What some exports have and others have not."""


@dataclass(frozen=True)
class Exported:
    """What was written: ``files`` by name; ``no_adapter`` says why there is no PEFT adapter, or is empty."""

    folder: Path
    files: tuple[str, ...]
    no_adapter: str


def export_prompt(
    settings: SiteSettings, prompt: SitePrompt, backbone: Backbone, folder: Path, licence: str = "unknown"
) -> Exported:
    """Export a site's prompt, if the site's policy still admits the experiment that it comes from.

    Args:
        settings: the site.
        prompt: what it learned.
        backbone: the model that it was learned for.
        folder: a new or empty folder, or that of an earlier export.
        licence: of the prompt, as model hubs write it: ``apache-2.0``.

    Raises:
        PrivacyError: the prompt was trained without noise and must stay at the site.
        RefusedError: the policy does not admit the experiment; code and rule are the policy's.
        ConfigError: there is no valid policy; then nothing leaves.
        StateError: the ledger is damaged or an old copy; then nobody knows what was charged.
    """
    _refuse_what_must_stay(prompt)
    policy = check_use(settings.path(settings.policy), settings.state_folder, prompt.experiment)
    record = DiskStore(settings.state_folder).read(prompt.experiment.name, prompt.round)
    metrics: dict[str, float] = {}
    if settings.data.is_public:
        metrics = policy.released_metrics(
            {**(record.reply.metrics if record else {}), **chosen_metrics(settings, prompt)}
        )
    facts = Facts(
        site=settings.name,
        charged_epsilon=_charged(settings, prompt.experiment.name),
        charged_delta=policy.delta,
        metrics=metrics,
        scores=released_scores(settings, prompt) if policy.metrics != "none" else (),
        seeded=settings.simulation is not None,
        model="" if Path(settings.model).expanduser().is_dir() else settings.model,
        bits=settings.data.bits,
        licence=licence,
    )
    return write_export(prompt, backbone, folder, facts)


def _charged(settings: SiteSettings, experiment: str) -> float | str | None:
    """What the ledger charged for the experiment towards a prompt's recipient; only looked at, never written."""
    try:
        rows = summarise(settings)["experiments"]
    except StateError as error:
        if error.code == "NO_LEDGER":
            return None
        raise
    return next((row["epsilon"] for row in rows if row["experiment"] == experiment), None)


def write_export(prompt: SitePrompt, backbone: Backbone, folder: Path, facts: Facts) -> Exported:
    """Write the folder; the policy is the caller's business, but a prompt without noise never leaves.

    The folder holds README.md (the model card) and prompt.safetensors with prompt.json (the context and its parts).
    For a model that compares images with classes it also holds text_features.safetensors (the classes' merged text
    features), and with evidence class_vectors.safetensors (what classifies). Where PEFT can express the prompt, it
    holds the adapter, with its tokenizer in a folder of its own. An embedded model, which no hub has, comes along.

    Raises:
        PrivacyError: see above.
        StateError: the folder holds something else.
    """
    _refuse_what_must_stay(prompt)
    embedded = _embedded(backbone.fingerprint)
    base = BaseModel("base_model", "ours") if embedded else _named(prompt, facts.model)
    base_model = base.name
    _make(folder)
    for name in OPTIONAL_FILES:  # of an earlier export
        (folder / name).unlink(missing_ok=True)
    if isinstance(backbone, DualEncoder):
        files, usage, reason = _write_with_classes(prompt, backbone, folder, base_model, facts.bits)
    else:
        assert isinstance(backbone, GenerativeBackbone)
        reason = "its context stands in the middle of a turn, behind the picture"
        files = _write_parts(prompt, backbone, folder, {"turn": backbone.turn})
        usage = generative_usage(prompt.experiment, base_model, reason, facts.bits)
    if embedded:
        files += _copy_base_model(embedded, folder / "base_model")
    card = model_card(prompt, backbone, facts, base, usage)
    write_durably(folder / "README.md", card.encode())
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() else PRIVATE)
    return Exported(folder, ("README.md", *files), reason)


def _write_with_classes(
    prompt: SitePrompt, backbone: DualEncoder, folder: Path, base_model: str, bits: int
) -> tuple[list[str], str, str]:
    """The parts, the classes' features and the adapter, where there can be one: files, usage, and why there is none."""
    context, classes = prompt.context(backbone), prompt.classes
    reason, adapter = "", None
    try:
        adapter = build_adapter(backbone, context, classes, base_model, prompt.experiment.prompt.init_text)
    except NotExpressibleError as error:
        reason = str(error)
    about: dict[str, Any] = {
        "context_follows": backbone.context_follows,
        "logit_scale": backbone.logit_scale,
        "logit_bias": backbone.logit_bias,
        "class_prompts": dict(zip(classes, adapter.prompts, strict=True)) if adapter else None,
    }
    files = _write_parts(prompt, backbone, folder, about)
    features = backbone.scorer(prompt.listing()).class_features(context).numpy()
    write_durably(folder / TEXT_FEATURES, save({"text_features": np.ascontiguousarray(features)}))
    files.append(TEXT_FEATURES)
    head = prompt.head(backbone, leaves=True)
    usage = classes_usage(backbone, adapter, base_model, reason, bits)
    if head is not None:
        tensors = {"vectors": head.vectors, "scale": np.array(head.scale), "bias": head.own_bias}
        tensors |= {"shares": head.shares, "mix": head.mix}
        content = {name: np.ascontiguousarray(value, dtype=np.float64) for name, value in tensors.items()}
        write_durably(folder / CLASS_VECTORS, save(content))
        files.append(CLASS_VECTORS)
        usage = vectors_usage(base_model, bits) + usage
    if adapter is not None:
        files += adapter.write(folder, backbone.token_embedding)
    return files, usage, reason


def _refuse_what_must_stay(prompt: SitePrompt) -> None:
    if prompt.experiment.privacy.unit == "site":
        raise PrivacyError(
            code="PROMPT_MUST_STAY",
            message="Under the unit site a site's own prompt is trained without noise: for its recipient "
            "epsilon is infinite, so it is not exported.",
            advice="Use it at the site (dpfpl-client predict), or pass on the shared prompt of the server.",
        )


def _make(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "prompt.json").is_file())):
        raise StateError(
            code="NOT_AN_EXPORT_FOLDER",
            message=f"{folder} holds something other than an earlier export.",
            advice="Give --out a new or empty folder.",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StateError(
            code="CANNOT_WRITE",
            message=f"{folder} cannot be made ({error.strerror}).",
            advice="Give --out a path in a folder that exists and that you may write to.",
        ) from None


def _write_parts(prompt: SitePrompt, backbone: Backbone, folder: Path, more: dict[str, Any]) -> list[str]:
    experiment = prompt.experiment
    factors = factorise(prompt.personal_context, experiment.prompt.rank, np.random.default_rng(0))
    parts = {
        "context": prompt.context(backbone).numpy(),
        "global_context": prompt.global_context,
        "personal_context": prompt.personal_context,
        "left": factors.left,
        "right": factors.right,
        "residual": factors.residual,
    }
    tensors = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in parts.items()}
    about: dict[str, Any] = {
        "experiment": to_table(experiment),
        "model_fingerprint": backbone.fingerprint,
        "added": prompt.added,
        "rounds": prompt.round,
        **{key: prompt.about()[key] for key in ("version", "learned", "finished")},
        **more,
    }
    write_durably(folder / "prompt.safetensors", save(tensors), PRIVATE)
    write_durably(folder / "prompt.json", (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode(), PRIVATE)
    return ["prompt.json", "prompt.safetensors"]


def _embedded(fingerprint: str) -> str:
    """The embedded model's name that has this fingerprint; empty for any other model."""
    return next((name for name in EMBEDDED if model_fingerprint(embedded_model_path(name)) == fingerprint), "")


def _named(prompt: SitePrompt, site_model: str) -> BaseModel:
    """A model that is none of ours: as the experiment names it, else by the hub id of the site's settings.

    An experiment that names none has the embedded model's name, which says nothing about a site with another model.
    The site's folders are named nowhere.
    """
    named = prompt.experiment.model.id
    if named not in EMBEDDED:
        return BaseModel(named, "experiment")
    if site_model and site_model not in EMBEDDED:
        return BaseModel(site_model, "site")
    return BaseModel("the-base-model", "nobody")


def _copy_base_model(name: str, folder: Path) -> list[str]:
    folder.mkdir(exist_ok=True, mode=0o700)
    source = embedded_model_path(name)
    names = sorted(path.name for path in source.iterdir() if path.is_file())
    for name in names:
        write_durably(folder / name, (source / name).read_bytes())
    return [f"base_model/{name}" for name in names]


# An export as a repository of a model hub, if the site's rules name that repository.


@dataclass(frozen=True)
class Uploaded:
    """What was uploaded: ``commit`` is its address; ``public`` says whether everybody may read it."""

    commit: str
    public: bool


def check_publish(settings: SiteSettings, prompt: SitePrompt, repository: str) -> None:
    """Refuse a repository that the site's policy does not name, or an experiment that it does not admit.

    Raises:
        RefusedError: PUBLISH_NOT_ALLOWED, or as the policy refuses the experiment.
        ConfigError: there is no valid policy.
    """
    policy = check_use(settings.path(settings.policy), settings.state_folder, prompt.experiment)
    if repository not in policy.publish:
        raise RefusedError(
            code="PUBLISH_NOT_ALLOWED",
            message=f"The site's policy does not let prompts go to the repository {repository!r}.",
            rule="publish",
            advice=f'Write publish = ["{repository}"] into policy.toml, then: dpfpl-client policy accept.',
        )


def push_to_hub(
    settings: SiteSettings, prompt: SitePrompt, exported: Exported, repository: str, *, public: bool = False
) -> Uploaded:
    """Upload an export, its own files and no others, and write into the audit log that it leaves.

    Args:
        settings: the site.
        prompt: what was exported.
        exported: as ``export_prompt`` gives it.
        repository: ``organisation/name``; made where it does not exist yet.
        public: whether everybody may read it. Without this a public repository is refused. A private one that exists
            already stays private.

    Raises:
        RefusedError: PUBLISH_NOT_ALLOWED or REPOSITORY_PUBLIC, or as the policy refuses the experiment.
        DeploymentError: HUB_FAILED, the hub cannot be reached or does not take it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # the base of its own, imported there

    check_publish(settings, prompt, repository)
    hub = HfApi(token=True)  # the saved one, which our processes send nowhere unless they are asked to
    try:
        hub.create_repo(repository, private=not public, exist_ok=True)
        is_public = not hub.model_info(repository).private  # of one that exists, create_repo changes nothing
        if is_public and not public:
            raise RefusedError(
                code="REPOSITORY_PUBLIC",
                message=f"Everybody may read the repository {repository!r}.",
                advice="Make it private at the hub, or say --public if everybody may have the prompt.",
            )
        audit = AuditLog(settings.state_folder / AUDIT_FILE)
        audit.write(
            "published",
            experiment=prompt.experiment.name,
            version=prompt.version,
            repository=repository,
            public=is_public,
        )
        commit = hub.upload_folder(
            repo_id=repository,
            folder_path=exported.folder,
            allow_patterns=list(exported.files),
            delete_patterns=[name for name in OPTIONAL_FILES if name not in exported.files],
            commit_message=f"Prompt of {prompt.experiment.name}, version {prompt.version}",
        )
    except (HTTPError, OSError, ValueError) as error:
        raise DeploymentError(
            code="HUB_FAILED",
            message=f"The hub did not take {repository!r} ({type(error).__name__}: {first_line(error)}).",
            advice="Is it in reach, and may you write there? Sign in: hf auth login. HF_HUB_OFFLINE must not be set.",
        ) from None
    return Uploaded(str(commit.commit_url), is_public)
