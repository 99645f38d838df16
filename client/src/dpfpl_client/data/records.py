"""What the rest of a site sees of its data: labelled images, and what an administrator should know about them."""

import hashlib
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image

from dpfpl_client.data.decode import UnreadableImageError, pixel_digest
from dpfpl_client.data.viewpoint import apply_viewpoint
from dpfpl_common.errors import DataError

__all__ = ["DataProblem", "ImageRecord", "ImageSource", "SiteData", "problem_per_name"]

_NAMED = 20


class ImageSource(Protocol):
    """Where an image's pixels come from; reading twice gives the same pixels."""

    def read(self) -> Image.Image:
        """Decode to RGB.

        Raises:
            UnreadableImageError: with the reason, without the name.
        """
        ...


@dataclass(frozen=True)
class ImageRecord:
    """One labelled image, decoded only when it is opened.

    Attributes:
        key: stable id inside its source (a relative path, ``digits/17``); never leaves the site.
        label: the class name as the experiment knows it.
        digest: sha256 of the decoded pixels and their size, before the viewpoint: a renamed or losslessly re-encoded
            copy has the same digest, a turned one as well.
        split: ``train`` or ``test``.
        source: where the pixels come from.
        viewpoint: how the site sees the image (see :mod:`dpfpl_client.data.viewpoint`).
        question: what is asked about the image, where the data are questions; the label is then the right answer. Empty
            for a caption, which is such an answer too.
    """

    key: str
    label: str
    digest: str
    split: str
    source: ImageSource = field(repr=False, compare=False)
    viewpoint: str = "upright"
    question: str = ""

    def open(self) -> Image.Image:
        """Decode the image to RGB and turn it to the viewpoint.

        Raises:
            DataError: the file is gone or damaged, or holds other pixels than when it was split and counted; training
                on those would be training on something that the split and the manifest do not describe.
        """
        try:
            image = self.source.read()
        except UnreadableImageError as error:
            raise DataError(
                code="IMAGE_UNREADABLE",
                message=f"The image {self.key!r} can no longer be read: {error}.",
                advice="Restore the file, or start again without it.",
            ) from None
        if pixel_digest(image) != self.digest:
            raise DataError(
                code="IMAGE_CHANGED",
                message=f"The image {self.key!r} changed after the data set was read.",
                advice="Leave the data folder alone while an experiment runs; start again to use the new image.",
            )
        return apply_viewpoint(image, self.viewpoint)


@dataclass(frozen=True)
class DataProblem:
    """Something that a site administrator should know; it stays at the site.

    Attributes:
        code: stable, for scripts (``CORRUPT_IMAGE``).
        severity: ``error`` or ``warning``.
        message: names the file or class, and says what to do.
    """

    code: str
    severity: str
    message: str


@dataclass(frozen=True)
class SiteData:
    """The images of one site.

    Attributes:
        train: what the site trains on.
        test: test images of the classes that the site trains on ("local").
        neighbour_test: test images of the other sites, or of classes that the site does not train on; may be empty.
        classes: the classes of ``train``, in the experiment's order.
        problems: what was skipped, and what looks wrong.
        unreadable: keys of the images of the source, not only of this site's part, that cannot be read.
    """

    train: tuple[ImageRecord, ...]
    test: tuple[ImageRecord, ...]
    neighbour_test: tuple[ImageRecord, ...]
    classes: tuple[str, ...]
    problems: tuple[DataProblem, ...]
    unreadable: tuple[str, ...] = ()

    @property
    def manifest_digest(self) -> str:
        """The training set's identity: sha256 over the sorted (digest, label, question), whatever the files' names."""
        lines = sorted(
            f"{record.digest} {record.label}\n" + (f"{record.question}\n" if record.question else "")
            for record in self.train
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def problem_per_name(code: str, reasons: dict[str, str], advice: str) -> list[DataProblem]:
    """One warning per named file, and one for the rest when there are many.

    Args:
        code: the problem's code.
        reasons: what is wrong, by the name of what it is wrong with.
        advice: what to do about it.
    """
    problems = [
        DataProblem(code, "warning", f"{name!r} is skipped: {reason}. {advice}")
        for name, reason in list(reasons.items())[:_NAMED]
    ]
    if len(reasons) > _NAMED:
        problems.append(DataProblem(code, "warning", f"{len(reasons) - _NAMED} more are skipped as well. {advice}"))
    return problems
