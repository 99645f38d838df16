"""An exported prompt as a repository of a model hub, if the site's rules name that repository."""

from dataclasses import dataclass

from dpfpl_client.agent.audit import AUDIT_FILE, AuditLog
from dpfpl_client.agent.policy_file import check_use
from dpfpl_client.site.settings import SiteSettings
from dpfpl_client.use.exporting.export import OPTIONAL_FILES, Exported
from dpfpl_client.use.prompt import SitePrompt
from dpfpl_common.errors import DeploymentError, RefusedError
from dpfpl_common.ops.text import first_line

__all__ = ["Uploaded", "check_publish", "push_to_hub"]


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
