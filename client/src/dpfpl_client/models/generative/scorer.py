"""A generative model joined to a task: the loss of right answers, its gradients one by one, and what it answers.

All tasks are questions about a picture. *vqa*: every example brings question and answer. *caption*: the answer, to one
public question for all or to none. *classify*: one public question for all, and the class's name is the answer. The
loss is the mean cross-entropy of the right answer's tokens, the end token included.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.nn import functional

from dpfpl_client.data.questions import same_answer, word_overlap
from dpfpl_client.models.backbone import LabelledFeatures, Predictor, Scorer
from dpfpl_client.models.generative.language import KeysValues, LanguageModel
from dpfpl_client.models.generative.layout import Layout
from dpfpl_common.errors import ModelError

if TYPE_CHECKING:
    from dpfpl_common.experiment import GradientSettings, TaskSettings

__all__ = ["AnswerPredictor", "AnswerScorer"]

logger = logging.getLogger(__name__)

QUESTION: Final = "What is in the picture?"
"""Asked where a classification names no question of its own."""

AT_ONCE: Final = 64


@dataclass(frozen=True)
class MicroBatch:
    """Examples whose questions have one length, so that nothing stands between question and answer.

    Attributes:
        index: [b], which examples of the batch.
        pictures: rows [b, tokens * width].
        questions: ids [b, q].
        answers: ids [b, a], padded on the right, which a causal model's earlier tokens never see.
        real: bool [b, a].
    """

    index: Tensor
    pictures: Tensor
    questions: Tensor
    answers: Tensor
    real: Tensor


class AnswerScorer(Scorer):
    """The model, its turn, and a task.

    What it is given and gives is on the processor, wherever the model computes.

    Args:
        language: the language model behind a picture.
        layout: of a turn.
        task: of the experiment.
        classes: names, for classification.
    """

    def __init__(self, language: LanguageModel, layout: Layout, task: "TaskSettings", classes: Sequence[str]) -> None:
        self._language, self._layout, self._task, self._classes = language, layout, task, tuple(classes)

    def gradients(self, context: Tensor, examples: LabelledFeatures, estimate: "GradientSettings") -> Tensor:
        """d loss_x / d context [batch, num_context, width].

        Every example of a micro-batch has a copy of the context of its own, so one backward pass gives each example's
        gradient; examples share nothing else. Memory is bounded by the micro-batch. An example whose turn is too long
        for the model has the gradient zero. The copies are float32 also where
        the model computes in bfloat16, and so are the gradients that come back.
        """
        result = context.new_zeros((len(examples), *context.shape))
        for part in self._parts(context, self._asked(examples), examples.features):
            with torch.enable_grad():
                copies = context.detach().expand(len(part.index), -1, -1).clone().requires_grad_(True)
                losses = self._losses(copies, part)
                result[part.index] = torch.autograd.grad(losses.sum(), copies)[0]
        return result

    def total_gradient(self, context: Tensor, examples: LabelledFeatures, weights: Tensor) -> Tensor:
        """``sum_x weights_x g_x`` [num_context, width]; an example of weight 0 is absent."""
        used = torch.nonzero(weights).flatten()
        asked = self._asked(examples)
        result = torch.zeros_like(context)
        for part in self._parts(context, [asked[int(i)] for i in used], examples.features[used]):
            with torch.enable_grad():
                leaf = context.detach().clone().requires_grad_(True)
                losses = self._losses(leaf.expand(len(part.index), -1, -1), part)
                result += torch.autograd.grad((losses * weights[used][part.index]).sum(), leaf)[0]
        return result

    def at(self, context: Tensor) -> "AnswerPredictor":
        """The task under a context [num_context, width]."""
        return AnswerPredictor(self, context)

    def too_long(self, num_context: int, question: str, answer: str) -> bool:
        """Whether a turn has more tokens than the model was made for; such an example teaches nothing."""
        behind = len(self._layout.question_ids(question)) + len(self._layout.answer_ids(answer))
        return len(self._layout.head) + num_context + behind > self._language.longest

    def cut_off(self, answers: Sequence[str]) -> int:
        """How many of these right answers are other ones when they end after the task's ``max_answer_tokens``."""
        limit, count = self._task.max_answer_tokens, 0
        for answer in answers:
            *ids, _ = self._layout.answer_ids(answer)
            count += len(ids) > limit and not same_answer(self._layout.text_of(ids[:limit]), answer)
        return count

    def _asked(self, examples: LabelledFeatures) -> list[tuple[str, str]]:
        """Question and right answer of every example."""
        if self._task.in_words:
            assert len(examples.asked) == len(examples), "features without questions"
            return [(question or self._task.question, answer) for question, answer in examples.asked]
        return [(self.question, self._classes[int(label)]) for label in examples.labels]

    @property
    def question(self) -> str:
        """Asked of every picture where classes are told apart."""
        return self._task.question or QUESTION

    def _losses(self, contexts: Tensor, part: MicroBatch) -> Tensor:
        """[b] for contexts [b, m, d]: the mean over the answer's tokens."""
        return -self._log_likelihoods(contexts, part) / part.real.sum(dim=1)

    def _log_likelihoods(self, contexts: Tensor, part: MicroBatch) -> Tensor:
        """log p(answer | picture, context, question), [b]."""
        embed = self._language.embed
        behind = torch.cat(
            [self._language.vectors(contexts), embed(part.questions), embed(part.answers[:, :-1])], dim=1
        )
        hidden = self._language.states(part.pictures, behind, part.answers.shape[1] - 1)
        logits = self._language.logits(hidden[:, -part.answers.shape[1] :])
        answers = part.answers[:, :, None].to(logits.device)
        spoken = functional.log_softmax(logits.float(), dim=-1).gather(2, answers)[:, :, 0].cpu()
        return (spoken * part.real).sum(dim=1)

    def _parts(self, context: Tensor, asked: Sequence[tuple[str, str]], pictures: Tensor) -> Iterator[MicroBatch]:
        """Micro-batches: questions of one length, no more at once than memory allows; in no particular order.

        Turns that are too long for the model are in none of them.
        """
        fits = [not self.too_long(len(context), question, answer) for question, answer in asked]
        if not all(fits):
            logger.warning(
                "%d of %d turns have more than the model's %d tokens and are left out.",
                len(fits) - sum(fits), len(fits), self._language.longest,
            )  # fmt: skip
        questions = [self._layout.question_ids(question) for question, _ in asked]
        answers = [self._layout.answer_ids(answer) for _, answer in asked]
        for length in sorted({len(ids) for ids in questions}):
            members = [place for place, ids in enumerate(questions) if len(ids) == length and fits[place]]
            if not members:
                continue
            longest = max(len(answers[place]) for place in members)
            size = self._language.examples_within(len(context) + length + longest)
            for start in range(0, len(members), min(AT_ONCE, size)):
                chosen = members[start : start + min(AT_ONCE, size)]
                yield _micro_batch(chosen, pictures, questions, answers)


def _micro_batch(
    chosen: Sequence[int], pictures: Tensor, questions: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> MicroBatch:
    index = torch.tensor(chosen)
    longest = max(len(answers[place]) for place in chosen)
    ids = torch.zeros((len(chosen), longest), dtype=torch.long)
    real = torch.zeros((len(chosen), longest), dtype=torch.bool)
    for row, place in enumerate(chosen):
        ids[row, : len(answers[place])] = torch.tensor(answers[place])
        real[row, : len(answers[place])] = True
    asked = torch.tensor([list(questions[place]) for place in chosen], dtype=torch.long)  # none, even: then [b, 0]
    return MicroBatch(index, pictures[index], asked, ids, real)


class AnswerPredictor(Predictor):
    """A task under one context [num_context, width]."""

    def __init__(self, scorer: AnswerScorer, context: Tensor) -> None:
        self._scorer, self._context = scorer, context

    @torch.no_grad()
    def probabilities(self, features: Tensor) -> Tensor:
        """Of the classes, [n, classes]: how probable each name is as the whole answer, made to add up to 1.

        Raises:
            ModelError: NO_CLASSES, the task is open questions.
        """
        scorer = self._scorer
        if not scorer._classes:
            raise ModelError(
                code="NO_CLASSES",
                message="The prompt was learned for open questions; there are no classes to choose from.",
                advice="Ask it a question.",
            )
        scores = torch.empty((len(features), len(scorer._classes)))
        for number, name in enumerate(scorer._classes):
            for part in scorer._parts(self._context, [(scorer.question, name)] * len(features), features):
                contexts = self._context.expand(len(part.index), -1, -1)
                scores[part.index, number] = scorer._log_likelihoods(contexts, part)
        return torch.softmax(scores, dim=1)

    @torch.no_grad()
    def reply(self, feature: Tensor, question: str) -> tuple[str, float]:
        """The answer to a question about one picture's row, and the product of its tokens' probabilities.

        Raises:
            ModelError: TURN_TOO_LONG.
        """
        if self._scorer.too_long(len(self._context), question, ""):
            raise ModelError(
                code="TURN_TOO_LONG",
                message=f"The question makes a turn longer than the model's {self._scorer._language.longest} tokens.",
                advice="Ask a shorter one.",
            )
        (part,) = self._scorer._parts(self._context, [(question, "")], feature[None])
        ((ids, logarithm),) = self._spoken(part)
        return self._scorer._layout.text_of(ids), math.exp(logarithm)

    def agreement(self, examples: LabelledFeatures) -> Tensor:
        """How right each answer is, from 0 to 1, [n]: the most probable class, or the spoken answer as normalised.

        Of captions the word overlap, which counts a caption in other words as partly right.
        """
        if len(examples) == 0:
            return torch.zeros(0, dtype=torch.float64)
        if self._scorer._task.in_words:
            same = word_overlap if self._scorer._task.kind == "caption" else same_answer
            pairs = zip(self.answers(examples), examples.asked, strict=True)
            return torch.tensor([float(same(mine, right)) for mine, (_, right) in pairs], dtype=torch.float64)
        return (self.probabilities(examples.features).argmax(dim=1) == examples.labels).double()

    @torch.no_grad()
    def answers(self, examples: LabelledFeatures) -> list[str]:
        """What the model answers each question, word by word the most probable; nothing where the turn is too long."""
        scorer = self._scorer
        result = [""] * len(examples)
        for part in scorer._parts(self._context, scorer._asked(examples), examples.features):
            for place, (ids, _) in zip(part.index.tolist(), self._spoken(part), strict=True):
                result[place] = scorer._layout.text_of(ids)
        return result

    def _spoken(self, part: MicroBatch) -> list[tuple[list[int], float]]:
        """Greedy ids of a micro-batch, without the end token, and the logarithm of their probability."""
        language, ends = self._scorer._language, self._scorer._layout.ends
        contexts = self._context.expand(len(part.index), -1, -1)
        behind = torch.cat([language.vectors(contexts), language.embed(part.questions)], dim=1)
        spoken: list[list[int]] = [[] for _ in part.index]
        logarithms = [0.0] * len(spoken)
        open_ = set(range(len(spoken)))
        keys_values: KeysValues | None = language.prefix(part.pictures) if language.shared else None
        room = language.longest - len(self._scorer._layout.head) - behind.shape[1]
        for said_before in range(min(room, self._scorer._task.max_answer_tokens)):
            if keys_values is None:
                hidden = language.states(part.pictures, behind, said_before)
            else:
                hidden, keys_values = language.continued(keys_values, behind)
            best = functional.log_softmax(language.logits(hidden[:, -1]).float(), dim=-1).max(dim=-1)
            likely, chosen = best.values.cpu(), best.indices.cpu()
            for row in sorted(open_):
                logarithms[row] += float(likely[row])
                if int(chosen[row]) in ends:
                    open_.remove(row)
                else:
                    spoken[row].append(int(chosen[row]))
            if not open_:
                break
            said = language.embed(chosen[:, None])
            behind = torch.cat([behind, said], dim=1) if keys_values is None else said
        return list(zip(spoken, logarithms, strict=True))
