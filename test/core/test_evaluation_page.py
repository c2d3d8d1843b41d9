"""The page of an evaluation: shows what the report holds, leaves out what it lacks, and says when it is incomplete."""

import copy
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import evaluation_example as example
import numpy as np
import pytest

from endomust_core import report as html_report
from endomust_core.evaluation_page import page


class Text(HTMLParser):
    """Collects words and checks that tags close in order."""

    EMPTY = {"meta", "img"}

    def __init__(self):
        super().__init__()
        self.open, self.words = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)


def words_of(html):
    parsed = Text()
    parsed.feed(html)
    assert parsed.open == []
    return " ".join(" ".join(parsed.words).split())


def test_the_page_shows_every_part():
    html = page(example.report(), example.frames())
    words = words_of(html)
    assert re.findall(r"<h2>(.*?)</h2>", html) == [
        "Depth",
        "Best, median and worst",
        "Error against distance and brightness",
        "Sequences",
        "Camera motion",
        "Intrinsics",
        "Latency",
        "Under corruption",
        "How to get these numbers again",
    ]
    assert "What the numbers mean" in words
    assert "73 % less error than guessing" in words, "0.055 beside 0.205"
    assert "inverse-square brightness" in words and "endomust evaluate models/a --data rendered:/data" in words
    assert "0.0900" in words, "the five-frame error in millimetres"
    assert "12.0" in words and "83.3" in words, "latency in milliseconds and images per second"


def test_the_page_needs_nothing_from_elsewhere_and_every_drawing_is_sound():
    html = page(example.report(), example.frames())
    assert not re.search(r"https?://|@import|url\((?!#)| src=\"(?!data:)", html)
    drawings = re.findall(r"<svg.*?</svg>", html, flags=re.S)
    assert len(drawings) >= 9
    for drawing in drawings:
        ElementTree.fromstring(drawing)
        assert "nan" not in drawing and "inf" not in drawing
    identifiers = re.findall(r' id="([^"]+)"', html)
    assert len(identifiers) == len(set(identifiers))
    assert "NaN" not in html


def test_frames_stand_in_the_order_best_median_worst():
    html = page(example.report(), example.frames())
    assert re.findall(r"<h3><b>(\w+)</b>", html) == ["best", "median", "worst"]
    assert html.count("<figure>") == 12
    assert "error over 10 %: 100 % of pixels too far, 0 % too near" in words_of(html)


@pytest.mark.parametrize("part", ["depth", "temporal", "motion", "intrinsics", "latency", "curves", "trajectories",
                                  "degradation", "environment", "notes", "problems"])  # fmt: skip
def test_a_part_that_is_missing_or_empty_is_left_out(part):
    for value in (None, {}):
        content = example.report()
        content[part] = value
        words_of(page(content, example.frames()))
        del content[part]
        words_of(page(content))


def test_null_is_shown_as_a_dash():
    def without_numbers(value):
        if isinstance(value, dict):
            return {key: without_numbers(v) for key, v in value.items()}
        return None if isinstance(value, float) else value

    content = example.report()
    for part in ("depth", "motion", "temporal", "degradation"):
        content[part] = without_numbers(content[part])
    words = words_of(page(content))
    assert "–" in words and "None" not in words and "nan" not in words


def test_incomplete_is_said_at_the_top_and_long_lists_end():
    content = example.report()
    content.update(complete=False, problems=[f"image {number} cannot be read" for number in range(50)])
    html = page(content)
    words = words_of(html)
    assert "Incomplete" in words and "and 20 more" in words and "image 45 " not in words
    assert html.index("Incomplete") < html.index("<h2>Depth</h2>")
    assert "Incomplete" not in words_of(page(example.report()))


def test_worse_than_a_guess_is_not_hidden():
    content = example.report(shift=0.3)
    assert "MORE error than guessing" in words_of(page(content))


def test_text_of_the_report_is_escaped():
    content = copy.deepcopy(example.report(name="<script>alert(1)</script>"))
    content["problems"] = ["<b>bold</b>"]
    html = page(content)
    assert "<script>alert" not in html and "<b>bold" not in html and "&lt;b&gt;bold" in html


def test_corrupted_images_are_named_with_their_physics():
    content = example.report()
    content["corruption"] = {"name": "smoke", "severity": 3}
    words = words_of(page(content))
    assert "corrupted: smoke, severity 3" in words and "Electrocautery" in words


def test_too_near_is_blue_too_far_is_red_and_unknown_is_grey():
    near, right, far, unknown = html_report.signed(np.array([[-0.3, 0.0, 0.5, np.nan]]), 0.3)[0].astype(int)
    assert near[2] > near[0] + 50 and far[0] > far[2] + 50 and right.min() > 230
    assert tuple(unknown) == html_report.UNKNOWN
