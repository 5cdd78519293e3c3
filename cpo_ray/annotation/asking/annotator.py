"""Take one picture through all its questions: reuse known answers, ask the open questions, settle the labels."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from cpo_ray.annotation.asking.answers import AnswerError, RootAnswer, content_prompt, judgement, missing, settle
from cpo_ray.annotation.asking.cache import Answer, Answers
from cpo_ray.annotation.asking.questions import CONTENT, SHOWS, Question, Questions
from cpo_ray.annotation.back_ends.base import BackEnd, Unanswered
from cpo_ray.annotation.pictures import Picture
from cpo_ray.hierarchy import Hierarchy

#: Token estimates before anything was measured: four characters each, a patch of 28 pixels, and a short answer.
CHARACTERS_PER_TOKEN, PATCH, ANSWER_TOKENS = 4, 28, 150


@dataclass
class Effort:
    """Counts of questions asked, failed, and known before; of calls including retries; and of tokens."""

    asked: int = 0
    failed: int = 0
    known: int = 0
    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def add(self, other: Effort) -> None:
        """Add another's counts."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)

    def times(self, count: int) -> Effort:
        """Return `count` times as much."""
        return Effort(**{name: count * value for name, value in asdict(self).items()})


@dataclass
class Outcome:
    """The outcome of one picture. `problem` is empty if it was annotated; `kind` groups problems for counting.

    `judgements` maps root ids to the description and the sub-dimensions that led to the labels.
    """

    id: str
    digest: str
    width: int = 0
    height: int = 0
    prompt: str = ""
    positive_ids: Sequence[str] = ()
    negative_ids: Sequence[str] = ()
    judgements: dict[str, dict[str, Any]] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    kind: str = ""
    problem: str = ""
    effort: Effort = field(default_factory=Effort)


@dataclass
class Shown:
    """Says what a picture lacks of everything that its prompt names. `problem` is empty if the question was answered."""

    missing: Sequence[str] = ()
    problem: str = ""
    effort: Effort = field(default_factory=Effort)


class Annotator:
    """Annotates pictures under one tree with one back end; `retry_failed` also asks questions that failed before.

    Without a back end it can only say what it would ask.
    """

    def __init__(
        self,
        tree: Hierarchy,
        back_end: BackEnd | None,
        answers: Answers,
        *,
        tries: int,
        write_prompts: bool,
        retry_failed: bool = False,
    ) -> None:
        self._tree = tree
        self._questions = Questions(tree)
        self._back_end = back_end
        self._answers = answers
        self._tries = tries
        self._write_prompts = write_prompts
        self._retry_failed = retry_failed
        # A picture may appear twice under different names. The second one waits for the first one's answer.
        self._under_way: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._expected: set[str] = set()

    def expect(self, picture: Picture) -> Outcome:
        """Return what `annotate` would do if every question were answered at once, without asking. Tokens are estimates.

        If the content prompt is still to be written, attributes that may turn out not to apply are counted, too.
        """
        outcome = self._outcome(picture)
        if not picture.prompt:
            if not self._write_prompts:
                return _without_prompt(outcome)
            content = self._questions.content()
            if problem := self._expect(picture, content, outcome.effort):
                return _unanswered(outcome, [problem])
            known = self._answers.get(picture.digest, content)
            outcome.prompt = content_prompt(known.text) if known else ""
        expected = [self._expect(picture, question, outcome.effort) for question in self._questions.about(outcome.prompt)]
        problems = [problem for problem in expected if problem]
        return _unanswered(outcome, problems) if problems else outcome

    def _expect(self, picture: Picture, question: Question, effort: Effort) -> str | None:
        """Count what one question will take; return the reason if it failed before."""
        key = f"{picture.digest}/{question.digest}"
        if self._answers.get(picture.digest, question) or key in self._expected:
            effort.known += 1
            return None
        if earlier := self._tried_in_vain(picture, question):
            return earlier
        self._expected.add(key)
        effort.add(self._estimate(question, picture.seen_size))
        return None

    def estimate(self, prompt: str, size: tuple[int, int]) -> Effort:
        """Return what `annotate` and `shows` take for a picture of this prompt and size, (width, height) yet to be drawn.

        Tokens are the mean of earlier answers, or else a guess.
        """
        effort = Effort()
        for question in (*self._questions.about(prompt), self._questions.shows(prompt)):
            effort.add(self._estimate(question, size))
        return effort

    def _estimate(self, question: Question, size: tuple[int, int]) -> Effort:
        tokens_in, tokens_out = self._answers.expected_tokens(question.root_id) or _guess(question, size)
        return Effort(asked=1, calls=1, tokens_in=tokens_in, tokens_out=tokens_out)

    async def annotate(self, picture: Picture) -> Outcome:
        """Ask the open questions and settle the labels. A picture with an unanswered question is set aside with the reasons.

        Raises BackEndUnusable if the back end is at fault and not the picture.
        """
        outcome = self._outcome(picture)
        if not picture.prompt:
            if not self._write_prompts:
                return _without_prompt(outcome)
            try:
                outcome.prompt = content_prompt((await self._answer(picture, self._questions.content(), outcome.effort)).text)
            except Unanswered as problem:
                return _unanswered(outcome, [str(problem)])
        questions = self._questions.about(outcome.prompt)
        asked = (self._answer(picture, question, outcome.effort) for question in questions)
        results = await asyncio.gather(*asked, return_exceptions=True)
        problems: list[str] = []
        found: list[RootAnswer] = []
        for question, result in zip(questions, results, strict=True):
            if isinstance(result, Unanswered):
                problems.append(str(result))
            elif isinstance(result, BaseException):
                raise result
            else:
                found.append(judgement(result.text, question, self._tree))
        if problems:
            return _unanswered(outcome, problems)
        return self._settled(outcome, questions, found)

    async def shows(self, picture: Picture) -> Shown:
        """Ask whether a picture shows everything that its prompt names. Raises BackEndUnusable as `annotate` does."""
        shown = Shown()
        try:
            answer = await self._answer(picture, self._questions.shows(picture.prompt), shown.effort)
        except Unanswered as problem:
            shown.problem = str(problem)
        else:
            shown.missing = missing(answer.text)
        return shown

    def _settled(self, outcome: Outcome, questions: list[Question], found: list[RootAnswer]) -> Outcome:
        """Return the labels of all roots together, and how they came about."""
        dropped: Counter[str] = sum((j.dropped for j in found), Counter())
        positive = [i for j in found for i in j.positive_ids]
        negative = [i for j in found for i in j.negative_ids]
        outcome.positive_ids, outcome.negative_ids, _ = settle(self._tree, positive, negative, self._tree.attributes)
        lost = len(positive) + len(negative) - len(outcome.positive_ids) - len(outcome.negative_ids)
        dropped["contradiction between roots"] += lost
        outcome.dropped = dict(+dropped)
        outcome.judgements = {
            q.root_id: {"description": j.description, "sub_dimensions": list(j.sub_dimensions)}
            for q, j in zip(questions, found, strict=True)
        }
        return outcome

    async def _answer(self, picture: Picture, question: Question, effort: Effort) -> Answer:
        """Return the kept answer to a question, or ask for one and keep it. Raises Unanswered."""
        lock = self._under_way.setdefault(f"{picture.digest}/{question.digest}", asyncio.Lock())
        async with lock:
            known = self._answers.get(picture.digest, question)
            if known is not None:
                effort.known += 1
                return known
            if earlier := self._tried_in_vain(picture, question):
                raise Unanswered(earlier, 0)
            effort.asked += 1
            try:
                answer = await self._ask(picture, question, effort)
            except Unanswered as problem:
                effort.failed += 1
                effort.calls += problem.calls
                self._answers.put_failure(picture.digest, question, str(problem))
                raise
            self._answers.put(picture.digest, question, answer)
            return answer

    async def _ask(self, picture: Picture, question: Question, effort: Effort) -> Answer:
        """Ask until an answer is complete and consistent; after the last try take the last complete answer."""
        whole, complaint, tokens_in, tokens_out = "", "", 0, 0
        assert self._back_end is not None, "without a back end there is only `expect`"
        for _ in range(self._tries):
            reply = await self._back_end.ask(picture, question, complaint)
            effort.calls += reply.calls
            effort.tokens_in += reply.tokens_in
            effort.tokens_out += reply.tokens_out
            tokens_in, tokens_out = tokens_in + reply.tokens_in, tokens_out + reply.tokens_out
            try:
                complaint = self._complaint(reply.text, question)
                whole = reply.text
            except AnswerError as error:
                complaint = str(error)
            if whole and not complaint:
                break
        if not whole:
            raise Unanswered(f"{self._tries} answers could not be used, lastly: {complaint}", 0)
        return Answer(whole, tokens_in, tokens_out)

    def _complaint(self, text: str, question: Question) -> str:
        """Return how a complete answer contradicts itself. Raises AnswerError for an incomplete one."""
        if question.root_id in (CONTENT, SHOWS):
            (content_prompt if question.root_id == CONTENT else missing)(text)
            return ""
        return "; ".join(judgement(text, question, self._tree).contradictions)

    def _tried_in_vain(self, picture: Picture, question: Question) -> str | None:
        return None if self._retry_failed else self._answers.failure(picture.digest, question)

    @staticmethod
    def _outcome(picture: Picture) -> Outcome:
        return Outcome(picture.id, picture.digest, *picture.size, picture.prompt)


def _without_prompt(outcome: Outcome) -> Outcome:
    outcome.kind = "no content prompt"
    outcome.problem = "there is no content prompt; give one in the metadata, or set annotation.write_prompts"
    return outcome


def _unanswered(outcome: Outcome, problems: list[str]) -> Outcome:
    outcome.kind = "no answer"
    outcome.problem = "; ".join(dict.fromkeys(problems))
    return outcome


def _guess(question: Question, size: tuple[int, int]) -> tuple[int, int]:
    """Estimate the tokens of a question that was never asked, about a picture of (width, height) pixels."""
    width, height = size
    text = (len(question.system) + len(question.user)) // CHARACTERS_PER_TOKEN
    return text + -(-width // PATCH) * -(-height // PATCH), ANSWER_TOKENS
