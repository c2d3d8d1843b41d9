"""Comparing runs: differences with a known answer are found, noise is not, and what cannot be compared is refused."""

import json
import re

import evaluation_example as example
import numpy as np
import pytest

from endomust_core import compare as comparing
from endomust_core.compare import ALL, OTHERS, CompareError, compare, markdown
from endomust_core.compare_page import page


def test_a_constant_difference_is_found_to_the_digit(tmp_path):
    folders = [example.write(tmp_path / "a"), example.write(tmp_path / "b", "better", shift=-0.004)]
    found = compare(folders, draws=200)
    assert found["labels"] == ["endomust-tiny", "better"] and found["images"] == 31 and found["complete"]
    for group in (*example.SEQUENCES, ALL, OTHERS):
        cell = found["scores"]["abs_rel"][group]["better"]
        assert cell["difference"] == pytest.approx(-0.004)
        assert cell["difference_interval"] == pytest.approx([-0.004, -0.004])
        assert cell["verdict"] == "better" and cell["better"] == 1.0
    assert found["scores"]["a1"][ALL]["better"]["verdict"] == "better", "more is better there"
    assert found["scores"]["rmse"][ALL]["better"]["difference"] == pytest.approx(-0.0004)
    back = compare(folders[::-1], draws=200)
    assert back["scores"]["abs_rel"][ALL]["endomust-tiny"]["verdict"] == "worse"


def test_pairing_sees_what_unpaired_intervals_hide(tmp_path):
    found = compare([example.write(tmp_path / "a"), example.write(tmp_path / "b", "b", shift=-1e-4)], draws=200)
    row = found["scores"]["abs_rel"][ALL]
    assert row["endomust-tiny"]["interval"][0] < row["b"]["value"] < row["endomust-tiny"]["interval"][1]
    assert row["b"]["verdict"] == "better"


def test_chance_is_not_a_difference(tmp_path):
    folders = [example.write(tmp_path / "a"), example.write(tmp_path / "b", "b")]
    random = np.random.default_rng(1)
    lines = [json.loads(line) for line in (folders[1] / "images.jsonl").read_text().splitlines()]
    for row in lines:
        if row["predictor"] == "model":
            row["abs_rel"] += 0.005 * random.choice((-1, 1))
    (folders[1] / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    cell = compare(folders, draws=500)["scores"]["abs_rel"][ALL]["b"]
    assert cell["verdict"] == "no difference shown"
    assert cell["difference_interval"][0] < 0 < cell["difference_interval"][1]


def test_only_images_that_all_have_are_compared_and_the_rest_is_said(tmp_path):
    fewer = example.write(tmp_path / "b", "b", keep=lambda row: row["index"] != 3)
    found = compare([example.write(tmp_path / "a"), fewer], draws=50)
    assert found["images"] == 28 and found["scores"]["abs_rel"]["colon"]["b"]["images"] == 11
    assert found["runs"][0]["left_out"] == 3 and "3 images of endomust-tiny are left out" in " ".join(found["notes"])
    with pytest.raises(CompareError, match="no image in common"):
        compare([example.write(tmp_path / "c", keep=lambda row: row["index"] == 3), fewer])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r["data"].update(name="scared"), "data name .rendered and scared"),
        (lambda r: r["data"].update(split="val"), "data split"),
        (lambda r: r["data"]["protocol"].update(max_depth=0.256), "max_depth .0.15 and 0.256"),
        (lambda r: r.update(scaling="none"), "scaling .median and none"),
    ],
)
def test_different_rules_are_refused_in_words(tmp_path, change, words):
    with pytest.raises(CompareError, match=words):
        compare([example.write(tmp_path / "a"), example.write(tmp_path / "b", change=change)])


def test_another_truth_under_the_same_names_is_noticed(tmp_path):
    folders = [example.write(tmp_path / "a"), example.write(tmp_path / "b")]
    text = (folders[1] / "images.jsonl").read_text().splitlines()
    row = json.loads(text[-1])
    assert row["predictor"] == "constant"
    text[-1] = json.dumps(row | {"abs_rel": row["abs_rel"] * 1.01})
    (folders[1] / "images.jsonl").write_text("\n".join(text) + "\n")
    with pytest.raises(CompareError, match="1 of 31 images .* a constant depth scores differently"):
        compare(folders)


def test_folders_without_results_are_named(tmp_path):
    whole = example.write(tmp_path / "a")
    with pytest.raises(CompareError, match="two or more"):
        compare([whole])
    (tmp_path / "b").mkdir()
    with pytest.raises(CompareError, match="b has no report.json; run endomust evaluate"):
        compare([whole, tmp_path / "b"])
    (tmp_path / "b" / "report.json").write_text("{}")
    (tmp_path / "b" / "images.jsonl").write_text("")
    with pytest.raises(CompareError, match="not a report"):
        compare([whole, tmp_path / "b"])


def test_a_torn_row_is_counted_and_the_comparison_says_incomplete(tmp_path):
    torn = example.write(tmp_path / "b", "b")
    text = (torn / "images.jsonl").read_text()
    (torn / "images.jsonl").write_text(text[: text.rindex('"abs_rel"')])
    found = compare([example.write(tmp_path / "a"), torn], draws=50)
    assert not found["complete"] and any("1 lines" in note for note in found["notes"])


def test_a_row_without_its_numbers_is_counted_and_not_used(tmp_path):
    torn = example.write(tmp_path / "b", "b")
    bare = {"name": "colon/000000", "group": "colon", "index": 0, "predictor": "model"}
    with (torn / "images.jsonl").open("a") as file:
        file.write(json.dumps(bare) + "\n")
    found = compare([example.write(tmp_path / "a"), torn], draws=50)
    assert found["images"] == 31 and not found["complete"]


def test_runs_of_one_model_are_told_apart(tmp_path):
    def smoky(content):
        content["corruption"] = {"name": "smoke", "severity": 3}

    folders = [
        example.write(tmp_path / "a"),
        example.write(tmp_path / "b"),
        example.write(tmp_path / "c", change=smoky),
    ]
    found = compare(folders, draws=50)
    assert found["labels"] == ["endomust-tiny (a)", "endomust-tiny (b)", "endomust-tiny (smoke 3)"]
    notes = " ".join(found["notes"])
    assert "same weights" in notes and "smoke" in notes


def test_two_sequences_do_not_speak_of_others(tmp_path):
    def keep(row):
        return row["group"] != "stomach"

    folders = [example.write(tmp_path / name, name, keep=keep) for name in "ab"]
    assert list(compare(folders, draws=50)["scores"]["abs_rel"]) == ["colon", "sinus", ALL]


def test_table_and_page_hold_the_numbers_and_are_written_whole(tmp_path):
    folders = [example.write(tmp_path / "a"), example.write(tmp_path / "b", "rival <2>", shift=0.01)]
    found = compare(folders, draws=100)
    path = comparing.write(found, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["compare.html", "compare.json", "compare.md"]
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == found
    mean = np.mean([row["abs_rel"] for row in example.rows()])
    wanted = f"| all | {mean:.4f} | {mean + 0.01:.4f} | +0.0100 * | +0.0100 to +0.0100 | 0 % |"
    assert wanted in markdown(found)
    html = path.read_text()
    assert "rival &lt;2&gt;" in html and "rival <2>" not in html
    assert "+0.0100" in html and not re.search(r"https?://", html) and "nan" not in html.lower()
    assert html == page(found)
