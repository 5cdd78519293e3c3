"""The one table of scores, as aligned text for the terminal and as Markdown for model cards; and the list of scorers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cpo_ray.config import Config
from cpo_ray.config.registry import SCORERS
from cpo_ray.evaluation.measure import Comparison, Scores
from cpo_ray.evaluation.scorers.base import ModelScorer, NotScored, Scorer
from cpo_ray.models.bases.source import is_hub_id


def heads(scorers: Sequence[Scorer], base: str) -> list[str]:
    """Return the columns of the scores. A scorer may have a second column for its paired change."""
    columns = []
    for scorer in scorers:
        columns.append(f"{scorer.title} [95 %]" if scorer.with_interval else scorer.title)
        if scorer.with_change:
            columns.append(f"change vs {base} [95 %]")
    return columns


def cells(scorers: Sequence[Scorer], found: Scores | None) -> list[str]:
    """Return the cells of these columns for one model; empty ones if nothing was measured."""
    row = []
    for scorer in scorers:
        interval = found.intervals.get(scorer.name) if found else None
        change = found.changes.get(scorer.name) if found else None
        text = scorer.interval_text if scorer.with_interval else lambda one, kind=scorer: kind.text(one.mean)
        lost = found.unscored.get(scorer.name) if found else None
        row.append("" if interval is None else text(interval) + (f", {lost} unscored" if lost else ""))
        if scorer.with_change:
            row.append("" if change is None else scorer.interval_text(change, signed=True))
    return row


def table(found: Comparison) -> str:
    """Return all models, one per line."""
    head = ["model", *heads(found.scorers, found.base)]
    return aligned(head, [[name, *cells(found.scorers, model)] for name, model in found.models.items()])


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return plain text with a rule below the heads. The first `left` columns, and a last one without head, are left-aligned."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    at_left = [number < left or (number == len(head) - 1 and not head[-1]) for number in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if flush else cell.rjust(width) for cell, width, flush in zip(row, widths, at_left, strict=True)
        ).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join([lines[0], "  ".join("─" * width for width in widths).rstrip(), *lines[1:]])


def card_section(scorers: Sequence[Scorer], models: Mapping[str, Scores], split: str, pictures: int) -> str:
    """Return a model card's section about a model beside the base, the first of `models`: Markdown that ends with a line feed."""
    base = next(iter(models))
    head = ["model", *heads(scorers, base)]
    rows = [[name, *cells(scorers, found)] for name, found in models.items()]
    meanings = "; ".join(f"{scorer.title}: {scorer.meaning} ({scorer.better} is better)" for scorer in scorers)
    return (
        "## Evaluation\n\n"
        f"{pictures} pictures, of the same {split} prompts and noise for both models. {meanings}. "
        "Brackets hold 95 % intervals over pictures.\n\n"
        + "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rows))
    )


def scorer_list(config: Config) -> str:
    """Return what there is to score by: the registered scorers, as the configuration tells them, and its own ones."""
    told = {one.name: one for one in config.evaluation.scorers}
    lines = []
    for name in dict.fromkeys((*SCORERS.names, *told)):
        kind = SCORERS.load(name)
        scorer: Scorer = kind(told.get(name))
        lines.append(f"{name}: {scorer.meaning}; {scorer.better} is better" + (", chosen" if name in told else ""))
        if isinstance(scorer, ModelScorer):
            lines.append(f"    {scorer.size}, licence {scorer.licence}")
            lines.append(f"    {whereabouts(scorer)[1]}")
    return "\n".join(lines)


def whereabouts(scorer: ModelScorer) -> tuple[bool, str]:
    """Say whether a scorer can be used without the hub, and in words where its weights are."""
    try:
        weights = scorer.weights(download=False)
    except NotScored as error:
        if is_hub_id(scorer.told.weights):
            return False, f"weights {scorer.told.weights}, which is not on this machine and will be downloaded from the hub"
        return False, f"nothing will be scored by it: {error}"
    return True, f"weights {weights.source}, on this machine" if weights else "no weights needed"
