"""What models read is kept by picture, and set scorers make their numbers of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from support.tiny_scorers import inception_weights, noise_pictures, tiny_clip

from cpo_ray.config import Config, ConfigError, load
from cpo_ray.config.registry import SCORERS
from cpo_ray.core.statistics import Gaussian, frechet_distance, frechet_interval
from cpo_ray.evaluation.domain import Picture
from cpo_ray.evaluation.measure import Measured, compare
from cpo_ray.evaluation.models import compare_models
from cpo_ray.evaluation.readings import Asked, Portion, Rows, read_here, readings_of
from cpo_ray.evaluation.scorers.aesthetic import AestheticSettings
from cpo_ray.evaluation.scorers.base import Drawn, NotScored, open_scorers
from cpo_ray.evaluation.scorers.clip import ClipScore
from cpo_ray.evaluation.scorers.diversity import Coverage, CoverageSettings, Diversity, SpaceSettings
from cpo_ray.evaluation.scorers.fid import FID
from cpo_ray.evaluation.scorers.readers.base import PixelReader, Reader, WeightFiles
from cpo_ray.evaluation.tables import scorer_list

TOY = Path(__file__).parents[2] / "jobs" / "configs" / "toy.toml"


def config(*overrides: str) -> Config:
    return load(TOY, overrides)


class Counting(ClipScore):
    """Reads the mean brightness; its weights are a file that may change."""

    file: Path

    def weights(self, *, download: bool = True) -> WeightFiles:
        return WeightFiles("here", (self.file,), None)


class Brightness(Reader):
    side, fit, mean, deviation = 8, "stretch", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def forward(self, pixels):  # type: ignore[no-untyped-def]
        return pixels.mean((1, 2, 3))[:, None]


def counted(reader: Reader, sizes: list[int], batches: Iterable[Portion]) -> Iterator[tuple[Portion, Rows]]:
    for batch in batches:
        sizes.append(len(batch.pictures))
        yield from read_here(reader, [batch])


class Lazy(Sequence[Picture]):
    """Pictures that are made when they are asked for, with the most that were asked for at once."""

    def __init__(self, pictures: list[Picture]) -> None:
        self.pictures, self.most = pictures, 0

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, place):  # type: ignore[no-untyped-def]
        found = self.pictures[place]
        self.most = max(self.most, len(found) if isinstance(place, slice) else 1)
        return found


def test_a_picture_is_read_once_with_its_prompt_and_weights(tmp_path: Path) -> None:
    scorer, sizes = Counting(), list[int]()
    scorer.file = tmp_path / "weights"
    scorer.file.write_text("1")
    pictures, settings = noise_pictures(7), config("evaluation.batch=3")
    read = partial(counted, Brightness(), sizes)

    def rows(asked: dict[str, Asked]) -> dict[str, NDArray[np.float32]]:
        sizes.clear()
        return {name: found.pictures for name, found in readings_of(settings, scorer, asked, tmp_path, read).items()}

    lazy = Lazy(pictures)
    first = rows({"base": Asked(lazy, list("aabbccd"))})["base"]
    assert sizes == [3, 3, 1] and lazy.most == 3  # in batches, and never more in memory
    np.testing.assert_allclose(first[:, 0], [one.mean() / 255 for one in pictures], atol=0.02)
    again = rows({"base": Asked(pictures, list("aabbccd"))})["base"]
    assert sizes == [] and (again == first).all()
    rows({"base": Asked(pictures, list("aabbccX"))})
    assert sizes == [1]  # another prompt is read again, since this model reads prompts
    scorer.file.write_text("other")
    rows({"base": Asked(pictures, list("aabbccd"))})
    assert sizes == [3, 3, 1]  # and so is everything with other weights


def test_what_was_read_before_a_kill_is_not_read_again(tmp_path: Path) -> None:
    scorer, sizes = Counting(), list[int]()
    scorer.file = tmp_path / "weights"
    scorer.file.write_text("1")
    asked = {"base": Asked(noise_pictures(6), ["p"] * 6)}

    def killed(batches: Iterable[Portion]) -> Iterator[tuple[Portion, Rows]]:
        for number, done in enumerate(read_here(Brightness(), batches)):
            if number == 2:
                raise KeyboardInterrupt
            yield done

    with pytest.raises(KeyboardInterrupt):
        readings_of(config("evaluation.batch=2"), scorer, asked, tmp_path, killed)
    (file,) = tmp_path.rglob("*.jsonl")
    file.write_bytes(file.read_bytes()[:-7])  # the kill also cut the last line
    found = readings_of(config("evaluation.batch=2"), scorer, asked, tmp_path, partial(counted, Brightness(), sizes))["base"]
    assert found.pictures.shape == (6, 1) and sum(sizes) == 3


def test_frechet_distance_is_the_formula_also_with_fewer_pictures_than_features() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(0, 1, (50, 1)), generator.normal(2, 3, (70, 1))
    by_hand = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(a, b) == pytest.approx(by_hand, rel=1e-10)
    few, many = generator.normal(size=(6, 9)), generator.normal(0.5, 2, (4000, 9))
    cross = np.linalg.eigvals(np.cov(few, rowvar=False) @ np.cov(many, rowvar=False))
    by_hand = ((few.mean(0) - many.mean(0)) ** 2).sum() + np.trace(np.cov(few, rowvar=False) + np.cov(many, rowvar=False))
    by_hand -= 2 * np.sqrt(np.clip(cross.real, 0, None)).sum()
    assert frechet_distance(few, many) == pytest.approx(by_hand, rel=1e-6)
    assert frechet_distance(few.astype(np.float32), Gaussian.of(many)) == pytest.approx(by_hand, rel=1e-5)
    with pytest.raises(ValueError, match="features have 9 and 1 numbers a picture"):
        frechet_distance(few, a)


def test_fid_is_the_distance_of_what_was_read() -> None:
    generator = np.random.default_rng(0)
    rows, good = generator.normal(size=(30, 4)).astype(np.float32), generator.normal(1, 1, (90, 4)).astype(np.float32)
    found = FID().distance(Drawn([], [], None, rows, good))
    assert found == frechet_interval(rows.astype(np.float64), good.astype(np.float64)) and found.low < found.mean < found.high
    with pytest.raises(NotScored, match="takes three pictures at least, and there are 2"):
        FID().distance(Drawn([], [], None, rows[:2], good))


def test_diversity_is_the_mean_distance_within_prompts() -> None:
    rows = np.array([[1, 0], [0, 1], [1, 0], [0.6, 0.8], [1, 0]], dtype=np.float32)
    drawn = Drawn([], ["p", "p", "q", "q", "alone"], None, rows)
    # 1 - cosine is 1 for the first pair and 0.4 for the second.
    assert Diversity().distance(drawn).mean == pytest.approx(0.7)
    pixels = Diversity(SpaceSettings(name="diversity", space="pixels"))
    assert pixels.distance(drawn).mean == pytest.approx((1 + np.sqrt((0.4**2 + 0.8**2) / 2)) / 2)
    with pytest.raises(NotScored, match="each of the 2 pictures has a prompt of its own"):
        Diversity().distance(Drawn([], ["p", "q"], None, rows[:2]))
    grey = [np.full((9, 9, 3), value, dtype=np.uint8) for value in (0, 255)]
    assert pixels.distance(Drawn(grey, ["p", "p"], None, PixelReader().read(grey, ["p", "p"]))).mean == pytest.approx(1)


def test_coverage_counts_good_pictures_with_a_drawn_one_in_their_neighbourhood() -> None:
    good = np.array([[0], [1], [2], [10], [11], [12]], dtype=np.float32)
    near = Coverage(CoverageSettings(name="coverage", neighbours=1))
    made = np.array([[0.4], [1.5], [50]], dtype=np.float32)
    # 0, 1 and 2 have a drawn one within 1, their nearest neighbour's distance; 10, 11 and 12 have none.
    found = near.distance(Drawn([], [], None, made, good))
    assert found.mean == 0.5 and found.low < 0.5 < found.high
    assert near.distance(Drawn([], [], None, good, good)).mean == 1
    with pytest.raises(NotScored, match="there are 6 pictures to compare with, and neighbours = 9 takes more"):
        Coverage(CoverageSettings(name="coverage", neighbours=9)).distance(Drawn([], [], None, made, good))


def test_a_scorer_without_a_number_is_left_out_with_its_reason() -> None:
    scorers = (Diversity(), FID())
    base = Measured({}, {"fid": frechet_interval(np.eye(4), np.eye(4))}, left_out={"diversity": "no second picture"})
    found = compare({"base": base, "after": base}, scorers)
    assert [scorer.name for scorer in found.scorers] == ["fid"] and found.left_out == {"diversity": "no second picture"}
    assert found.as_json()["left_out"] == {"diversity": "no second picture"}


def test_local_paths_mean_the_same_in_the_folders_of_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = AestheticSettings(name="aesthetic", weights="some/model", clip="here")
    assert told.on_other_machines() == told
    (tmp_path / "here").mkdir()
    assert told.on_other_machines().clip == str(tmp_path / "here") and told.on_other_machines().weights == "some/model"
    assert CoverageSettings(name="coverage", reference=Path("good")).on_other_machines().reference == tmp_path / "good"


def test_scorers_are_told_in_sections_of_their_own() -> None:
    told = config('evaluation.scorers=["negatives", {name = "clip", weights = "my/clip"}, {name = "coverage", space = "pixels"}]')
    _, clip, coverage = open_scorers(told)
    assert isinstance(clip, ClipScore) and clip.told.weights == "my/clip"
    assert isinstance(coverage, Coverage) and coverage.told.neighbours == 5
    with pytest.raises(ConfigError, match="weight'"):
        config('evaluation.scorers=[{name = "clip", weight = "my/clip"}]')
    with pytest.raises(ConfigError, match="there is no scorer 'klip'"):
        config('evaluation.scorers=["klip"]')


def test_the_list_says_what_a_scorer_measures_and_where_its_weights_are(tmp_path: Path) -> None:
    save_file({}, tmp_path / "model.safetensors")
    lines = scorer_list(config(f'evaluation.scorers=[{{name = "pickscore", weights = "{tmp_path}"}}]')).splitlines()
    place = lines.index(
        "pickscore: PickScore's cosine between a picture and its prompt, without the factor of 100; higher is better, chosen"
    )
    assert lines[place + 1 : place + 3] == ["    3.9 GB, licence MIT", f"    weights {tmp_path}, on this machine"]
    assert [line.partition(":")[0] for line in lines if not line.startswith(" ")] == list(SCORERS.names)
    fid = lines.index("fid: Fréchet distance between Inception features of drawn and of good pictures; lower is better")
    assert lines[fid + 2].startswith("    nothing will be scored by it: nobody publishes its weights")


@pytest.mark.ray
def test_models_read_in_a_pool_and_one_without_weights_stops_nobody(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CLIP and Inception read on actors; a second call asks nobody; ImageReward has no weights here."""
    from cpo_ray.config import DomainSettings
    from cpo_ray.core.prompts import Labels
    from cpo_ray.evaluation.domain import NoDomain
    from cpo_ray.evaluation.rounds import Round
    from cpo_ray.hierarchy import load_hierarchy

    tiny_clip(tmp_path / "clip")
    inception_weights(tmp_path / "inception" / "model.safetensors")
    (tmp_path / "good").mkdir()
    for number, picture in enumerate(noise_pictures(8, seed=9)):
        Image.fromarray(picture).save(tmp_path / "good" / f"{number}.png")
    clip, good = "clip", tmp_path / "good"
    settings = config(
        "domain.use=none",
        "domain.pictures=0",
        "model.base=x",
        "evaluation.batch=4",
        f'evaluation.scorers=[{{name = "clip", weights = "{clip}"}}, {{name = "imagereward", weights = "{tmp_path}/none"}}, '
        f'{{name = "fid", weights = "{tmp_path}/inception", reference = "{good}"}}, '
        f'{{name = "coverage", space = "pixels", reference = "{good}"}}, {{name = "diversity", weights = "{clip}"}}]',
    )
    asked = Round(tuple(Labels(f"a red circle {number % 3}", (), ()) for number in range(6)), 1)
    pictures = {"base": noise_pictures(6, seed=1), "after": noise_pictures(6, seed=2)}
    domain = NoDomain(DomainSettings(use="none"), load_hierarchy(settings.data.hierarchy))
    monkeypatch.chdir(tmp_path)  # where the actors do not work
    found = compare_models(settings, domain, asked, pictures, tmp_path / "readings")
    assert found is not None
    assert [scorer.name for scorer in found.scorers] == ["clip", "fid", "coverage", "diversity"]
    assert list(found.left_out) == ["imagereward"] and "there are no weights at" in found.left_out["imagereward"]
    assert found.models["after"].changes["clip"].mean != 0 and found.models["base"].intervals["fid"].mean > 0
    monkeypatch.setattr(ray, "remote", None)  # nobody is asked again
    again = compare_models(settings, domain, asked, pictures, tmp_path / "readings")
    assert again is not None and again.as_json() == found.as_json()
