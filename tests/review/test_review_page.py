"""The page as a reviewer uses it, in a real browser."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait
from support.reviewing import TREE, Served, settings

from cpo_ray.config.review import ReviewSettings
from cpo_ray.data.shards import AnnotatedDataset
from cpo_ray.hierarchy import load_hierarchy
from cpo_ray.review.judgements import Verdicts, read_judgements, signed_ids

SWITCHES = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
 --disable-component-update --disable-sync --disable-dev-shm-usage --force-prefers-reduced-motion --window-size=1280,800"""


class Reviewer:
    """What a person does at the page, and sees there."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(url)
        self.until(lambda: self.text("place") or self.driver.find_element(By.ID, "sum").text)

    def press(self, *keys: str) -> None:
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def click(self, label: int, button: str) -> None:
        self.driver.find_elements(By.CSS_SELECTOR, ".label")[label].find_element(By.CLASS_NAME, button).click()

    def until(self, seen: Callable[[], object]) -> None:
        WebDriverWait(self.driver, 60, poll_frequency=0.03).until(lambda _: seen())

    def text(self, name: str) -> str:
        return self.driver.find_element(By.ID, name).text

    def is_at(self, number: int) -> bool:
        return self.text("place") == f"Picture {number}"

    def verdicts(self) -> list[str]:
        """Per label what the page shows as kept."""
        pressed = "e => e.querySelector('[aria-pressed=true]')?.className ?? 'open'"
        found: list[str] = self.driver.execute_script(f"return [...document.querySelectorAll('.label')].map({pressed})")
        return found

    def current(self) -> str:
        """What a screen reader says of the element that has the focus."""
        label: str = self.driver.execute_script("return document.activeElement.getAttribute('aria-label') ?? ''")
        return label

    def shows(self, name: str) -> bool:
        return self.driver.find_element(By.ID, name).is_displayed()

    def size(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.fixture(scope="module")
def reviewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reviewer]:
    browser, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    assert browser and driver, "install chromium and chromedriver (on Debian: chromium chromium-driver), as `make test` does"
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for switch in [*SWITCHES.split(), f"--user-data-dir={tmp_path_factory.mktemp('browser')}"]:
        options.add_argument(switch)
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as chrome:
        yield Reviewer(chrome)


@pytest.fixture
def review(tmp_path: Path) -> ReviewSettings:
    return settings(tmp_path)


def on_disk(review: ReviewSettings, name: str) -> Verdicts:
    dataset = AnnotatedDataset.open(review.annotations)
    return {**read_judgements(review.judgements / f"{name}.jsonl", dataset, load_hierarchy(TREE))}


def labels_of(review: ReviewSettings, number: int) -> list[str]:
    """The signed ids of a picture in the order of the page: by root, the positive ones first."""
    dataset, tree = AnnotatedDataset.open(review.annotations), load_hierarchy(TREE)
    roots = [root.id for root in tree.roots]
    return sorted(signed_ids(dataset.labels(dataset.ids[number])), key=lambda signed: roots.index(tree.root_of(signed[1:]).id))


def test_a_review_by_keys_goes_on_after_a_reload_and_others_see_nothing_of_it(reviewer: Reviewer, review: ReviewSettings) -> None:
    ids, tree = AnnotatedDataset.open(review.annotations).ids, load_hierarchy(TREE)
    first = labels_of(review, 0)
    with Served(review, "ann") as served:
        reviewer.open(served.url)
        assert served.url.startswith(reviewer.driver.current_url) and "token" not in reviewer.driver.current_url
        assert (reviewer.text("place"), reviewer.text("count")) == ("Picture 1", "0 of 4 finished")
        assert tree.phrase(first[0]) in reviewer.current() and "not judged" in reviewer.current()
        attribute = tree.attribute(first[0][1:])
        assert attribute.definition in reviewer.text("about") and attribute.cue.split()[0] in reviewer.text("about")

        reviewer.press("y", "n", "u", "j", "k", Keys.ARROW_DOWN, Keys.ARROW_UP, "y", Keys.ARROW_UP, Keys.BACKSPACE)
        reviewer.until(lambda: reviewer.verdicts()[:4] == ["confirmed", "rejected", "unsure", "open"])
        reviewer.until(lambda: tree.phrase(first[3]) in reviewer.current())
        # The fourth label is open again, or not saved yet.
        taken_back = {ids[0]: {first[0]: "confirmed", first[1]: "rejected", first[2]: "unsure"}}
        reviewer.until(lambda: on_disk(review, "ann") == taken_back)

        other = tree.attribute(first[5][1:])
        ActionChains(reviewer.driver).move_to_element(reviewer.driver.find_elements(By.CLASS_NAME, "label")[5]).perform()
        assert other.definition in reviewer.text("about") and tree.phrase(first[3]) in reviewer.current()

        reviewer.press(" ")
        assert reviewer.shows("large")
        reviewer.until(lambda: reviewer.driver.execute_script("return whole.naturalWidth"))
        assert reviewer.driver.get_cookies() == []
        reviewer.press(" ", "?")
        assert not reviewer.shows("large") and reviewer.shows("help")
        reviewer.press("n", Keys.ESCAPE)
        assert not reviewer.shows("help")

        reviewer.press(Keys.ENTER)
        reviewer.until(lambda: reviewer.text("place") == "Picture 2")
        assert reviewer.text("count") == "1 of 4 finished"
        assert on_disk(review, "ann")[ids[0]] == dict.fromkeys(first, "confirmed") | {first[1]: "rejected", first[2]: "unsure"}
        reviewer.click(1, "rejected")
        reviewer.click(0, "confirmed")
        reviewer.until(lambda: reviewer.verdicts()[:2] == ["confirmed", "rejected"])
        reviewer.click(0, "confirmed")
        reviewer.until(lambda: reviewer.verdicts()[:2] == ["open", "rejected"])

        reviewer.driver.refresh()
        reviewer.until(lambda: reviewer.text("place") == "Picture 2")
        assert reviewer.verdicts()[:2] == ["open", "rejected"]
        reviewer.press(Keys.ARROW_LEFT)
        reviewer.until(lambda: reviewer.text("place") == "Picture 1")
        assert reviewer.verdicts()[:3] == ["confirmed", "rejected", "unsure"]
        kept = on_disk(review, "ann")

    with Served(review, "bert") as served:
        reviewer.open(served.url)
        assert [reviewer.text(name) for name in ("reviewer", "place", "count")] == ["by bert", "Picture 1", "0 of 4 finished"]
        assert reviewer.verdicts() == ["open"] * len(first)
        for number in range(1, 4):
            reviewer.press(Keys.ENTER)
            reviewer.until(partial(reviewer.is_at, number + 1))
            assert set(reviewer.verdicts()) == {"open"}
        reviewer.press(Keys.ENTER)
        reviewer.until(lambda: reviewer.shows("end"))
        total = sum(len(labels_of(review, number)) for number in range(4))
        assert reviewer.text("sum") == f"4 pictures: {total} labels confirmed, 0 rejected, 0 unsure."
        reviewer.driver.refresh()
        reviewer.until(lambda: reviewer.shows("end"))
    assert on_disk(review, "ann") == kept and set(on_disk(review, "bert")) == set(ids)


def test_what_is_not_saved_is_said_so_and_what_is_survives_a_kill(reviewer: Reviewer, review: ReviewSettings) -> None:
    first = labels_of(review, 0)
    given = [f"review.{name}={getattr(review, name)}" for name in ("annotations", "judgements", "hierarchy", "port")]
    command = [sys.executable, "jobs/review.py", *given, "--reviewer", "ann"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        try:
            assert job.stdout is not None
            said = [job.stdout.readline() for _ in range(3)]
            reviewer.open(said[2].strip())
            reviewer.press("y", "n")
            reviewer.until(lambda: reviewer.verdicts()[:2] == ["confirmed", "rejected"])
        finally:
            job.kill()  # else the end of the block would wait for it
    assert said[0].startswith("ann: 0 of 4 pictures finished; judgements go to ")
    reviewer.press("u")
    reviewer.until(lambda: reviewer.shows("trouble"))
    assert reviewer.text("problem").startswith("Not saved: the review does not answer")
    assert reviewer.verdicts()[2] == "open" and reviewer.text("open") == "1 not saved yet"
    reviewer.press(Keys.ENTER)
    assert reviewer.text("place") == "Picture 1"

    file = review.judgements / "ann.jsonl"
    with open(file, "ab") as torn:
        torn.write(file.read_bytes()[:50])
    with Served(review, "ann") as served:
        reviewer.open(served.url)
        assert reviewer.verdicts()[:3] == ["confirmed", "rejected", "open"]
        reviewer.press("u")
        reviewer.until(lambda: reviewer.verdicts()[2] == "unsure")
    assert [json.loads(line)["verdict"] for line in file.read_text().splitlines()] == ["confirmed", "rejected", "unsure"]
    (held,) = on_disk(review, "ann").values()
    assert held == dict(zip(first, ("confirmed", "rejected", "unsure"), strict=False))


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (400, 800), (320, 256)])
def test_all_of_it_is_in_reach_on_every_screen(reviewer: Reviewer, review: ReviewSettings, width: int, height: int) -> None:
    reviewer.size(width, height)
    with Served(review) as served:
        reviewer.open(served.url)
        assert reviewer.driver.execute_script("return document.documentElement.scrollWidth") <= width
        for _ in labels_of(review, 0):
            # In view means on top there: neither scrolled away nor under the bar at the foot.
            script = """const box = document.activeElement.getBoundingClientRect();
            return document.activeElement.contains(document.elementFromPoint(box.left + 9, box.top + box.height / 2))"""
            assert reviewer.driver.execute_script(script), reviewer.current()
            reviewer.press("j")
        for name in ("previous", "next", "ask", "rest", "picture"):
            box = reviewer.driver.find_element(By.ID, name).rect
            assert box["width"] > 20 and box["x"] >= 0 and box["x"] + box["width"] <= width
