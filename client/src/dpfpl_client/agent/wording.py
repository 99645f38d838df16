"""Questions and answers whose words a model cannot be told are left out when the agent starts, not found in a round."""

import dataclasses
from collections.abc import Sequence

from dpfpl_client.data import DataProblem, ImageRecord, SiteData
from dpfpl_client.learning.backbone import Backbone
from dpfpl_common.errors import DataError, ModelError

__all__ = ["without_unusable_words"]


def without_unusable_words(data: SiteData, backbone: Backbone) -> SiteData:
    """The data without examples whose question or answer the model refuses, and a warning for each.

    They stay registered and are never trained on. Meant for questions: class names are the experiment's business.

    Raises:
        DataError: SPECIAL_TOKEN, no training example is left.
    """
    problems: list[DataProblem] = []

    def usable(records: Sequence[ImageRecord]) -> tuple[ImageRecord, ...]:
        return tuple(record for record in records if _usable(record, backbone, problems))

    kept = dataclasses.replace(
        data, train=usable(data.train), test=usable(data.test), neighbour_test=usable(data.neighbour_test)
    )
    if data.train and not kept.train:
        raise DataError(
            code="SPECIAL_TOKEN",
            message=f"No training example is left: {problems[0].message}",
            advice="Write questions and answers in words that are none of the model's own tokens.",
        )
    return dataclasses.replace(kept, problems=(*data.problems, *problems))


def _usable(record: ImageRecord, backbone: Backbone, problems: list[DataProblem]) -> bool:
    try:
        backbone.check_words(record.question, record.label)
    except ModelError as error:
        message = f"The example {record.key!r} is left out. {error.message} {error.advice}"
        problems.append(DataProblem(error.code, "warning", message))
        return False
    return True
