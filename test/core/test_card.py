"""The model card of a mock bundle on small imitations of data sets: what it says, what it never says, what it lacks."""

import json
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

pytest.importorskip("onnx", reason="writes the mock bundle")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "data"))

from dataset_imitations import write_opencas, write_simcol3d
from mock_bundle import image_of_depth, tilted_plane, write_mock_bundle

from endomust_core import card as card_file
from endomust_core import cli
from endomust_core.card import make_card, portable, shown_path
from endomust_core.card_facts import measured
from endomust_core.card_page import page
from endomust_core.card_pictures import ERROR_LIMIT, encoded, failure_sheet, nearer_than_around
from endomust_core.card_protocol import CardError, read_protocol
from endomust_core.card_scores import mean_and_sd, with_interval
from endomust_core.data import open_dataset
from endomust_core.evaluate import evaluate
from endomust_core.evaluation_run import Shown
from endomust_core.odometry import se3, so3_exp
from endomust_core.predictions import BundlePredictor

NEAR, FAR = 0.02, 0.2
SECTIONS = ["What it is", "Domains and data", "Training", "Scores", "Where it fails", "On real images", "Limits",
            "Licence", "How to get this card again", "How to cite"]  # fmt: skip
TABLES = ["Depth", "Against guesses that learned nothing (AbsRel)", "Under faults of the image (AbsRel)",
          "Camera motion", "Camera intrinsics", "Training seeds", "Stages of the training"]  # fmt: skip


def write_sequence(folder, seed, frames=6):
    """A rendered folder whose red channel is the depth, wrong by another factor below the middle of each image."""
    random = np.random.default_rng(seed)
    (folder / "rgb").mkdir(parents=True)
    (folder / "depth").mkdir()
    poses = []
    for number in range(frames):
        said = tilted_plane(64, 48, 0.03 + 0.002 * number, 0.12)
        truth = said.copy()
        truth[24:] *= 1.3 + 0.1 * random.random() + 0.02 * (seed % 10)
        cv2.imwrite(str(folder / f"rgb/{number:06d}.png"), image_of_depth(said, NEAR, FAR)[..., ::-1])
        cv2.imwrite(str(folder / f"depth/{number:06d}.png"), np.round(truth * 1e5).astype(np.uint16))
        t = se3(so3_exp([0, 0.002 * number, 0]), [0.001 * number, 0, 0.0005 * number])[:3, 3]
        poses.append(f"{number / 25} {t[0]} {t[1]} {t[2]} 0 0 0 1")
    (folder / "poses.txt").write_text("\n".join(poses) + "\n")
    camera = {"image_width": 64, "image_height": 48, "camera_name": "x", "distortion_model": "plumb_bob",
              "camera_matrix": {"rows": 3, "cols": 3, "data": [50.0, 0, 31.5, 0, 50.0, 23.5, 0, 0, 1]},
              "distortion_coefficients": {"rows": 1, "cols": 5, "data": [0.0] * 5}}  # fmt: skip
    (folder / "camera.yaml").write_text(yaml.safe_dump(camera))
    (folder / "meta.yaml").write_text(yaml.safe_dump({"depth_unit_m": 1e-5, "frames": frames}))


def write_video(path, frames=8):
    """A bright round picture on black, in which a grey bar comes in from the left."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, (128, 96))
    for number in range(frames):
        bgr = np.zeros((96, 128, 3), np.uint8)
        cv2.circle(bgr, (64, 48), 46, (60, 80, 180), -1)
        cv2.rectangle(bgr, (20, 40), (30 + 6 * number, 56), (150, 150, 150), -1)
        writer.write(bgr)
    writer.release()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with a bundle, its twin of another seed, data sets, a clip and a protocol."""
    root = tmp_path_factory.mktemp("place")
    write_mock_bundle(root / "models/mock", size=(48, 64), near=NEAR, far=FAR, translation=(0.001, 0, 0.0004))
    write_mock_bundle(root / "models/twin", size=(48, 64), disparity=(8.0, 30.0), translation=(0.001, 0, 0.001))
    manifest = root / "models/mock/manifest.yaml"
    told = yaml.safe_load(manifest.read_text())
    told["provenance"] = {"command": "endomust pretrain", "seed": 7, "commit": "abc123", "note": "made by a test",
                          "config": {"depth": {"steps": 5}, "data": str(root / "elsewhere/scenes")}}  # fmt: skip
    manifest.write_text(yaml.safe_dump(told, sort_keys=False))
    for seed in range(4):
        write_sequence(root / f"data/tube/{5000 + seed}", seed)
    write_sequence(root / "data/cavity/6000", 9)
    write_simcol3d(root / "data/simcol3d")
    write_opencas(root / "data/opencas")
    write_video(root / "data/clip.mp4")
    (root / "card.yaml").write_text(yaml.safe_dump(protocol(root)))
    return root


def protocol(root, **changes):
    groups = [
        {"name": "tube", "data": "rendered:data/tube", "what": "a tube", "licence": "ours"},
        {"name": "cavity", "data": f"rendered:{root / 'data/cavity'}", "zero_shot": True},
        {"name": "simcol3d", "data": "simcol3d:data/simcol3d", "licence": "CC BY-NC-SA 4.0", "zero_shot": True},
        {"name": "ex vivo", "data": "opencas:data/opencas", "licence": "cite", "zero_shot": True, "indicative": True},
    ]
    return {
        "summary": "A mock.",
        "groups": groups,
        "real": [{"name": "a clip", "source": "data/clip.mp4", "fov_deg": 60, "rows": 3, "licence": "MIT"}],
        "limits": ["It only reads the red channel."],
        "faults": ["overexposure:3", "smoke:2"],
        "fault_images": 2,
        "replicates": ["models/twin"],
        "stages": {"first": ["models/twin"], "second": ["models/mock", "models/twin"]},
        "reproduce": ["endomust pretrain config/pretrain-tiny.yaml"],
        "cite": "@misc{mock}",
    } | changes


@pytest.fixture(scope="module")
def card(place):
    """The card, made once by the command in the working directory of the data: (README, card.json, folder)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        code = cli.main(["card", "models/mock", "--protocol", "card.yaml", "--out", "models/mock", "--cache", "cache"])
    out = place / "models/mock"
    assert code == 0
    return (out / "README.md").read_text(encoding="utf-8"), json.loads((out / "card.json").read_text()), out


def group_of(numbers, name):
    return next(group for group in numbers["groups"] if group["name"] == name)


def test_the_card_has_every_section_and_a_row_per_data_set(card):
    text, numbers, _ = card
    assert re.findall(r"^## (.+)$", text, re.M) == SECTIONS
    assert [title for title in re.findall(r"^### (.+)$", text, re.M) if title in TABLES] == TABLES
    assert text.startswith("---\nlicense: apache-2.0\n") and numbers["complete"] and "Incomplete" not in text
    for row in ("| tube | a tube | this domain, other scenes | `rendered:data/tube` | ours | 24 / 4 |",
                "| simcol3d |", "no (zero-shot)", "CC BY-NC-SA 4.0", "made by a test", "abc123", "steps: 5",
                "It only reads the red channel.", "@misc{mock}", "endomust pretrain config/"):  # fmt: skip
        assert row in text, row
    assert "| cavity (zero-shot) | " in text and "| ex vivo (zero-shot, indicative) | " in text


def test_every_table_has_as_many_cells_as_its_head(card):
    tables = re.findall(r"(?:^\|.*\n)+", card[0], re.M)
    assert len(tables) >= 8
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_numbers_are_those_of_evaluate(card, place):
    report = evaluate(BundlePredictor(place / "models/mock"), open_dataset(f"rendered:{place / 'data/tube'}")).report
    tube = group_of(card[1], "tube")
    scores, whole = tube["depth"], report["depth"]["model"]["all"]
    for key in ("abs_rel", "a1", "rmse"):
        assert scores["model"][key]["value"] == pytest.approx(whole[key], rel=1e-9), key
    assert set(scores) == set(report["depth"])
    assert scores["constant"]["abs_rel"]["value"] == pytest.approx(report["depth"]["constant"]["all"]["abs_rel"])
    for key in ("ate_5frame", "ate_5frame_rms", "ate_full"):
        assert tube["motion"][key]["value"] == pytest.approx(report["motion"]["all"][key], rel=1e-9), key
    assert tube["intrinsics"] == pytest.approx(report["intrinsics"]["all"]["relative_error"])
    within = [row["scale_std"] for name, row in report["depth"]["model"].items() if name != "all"]
    assert tube["scale_std"]["value"] == pytest.approx(np.mean(within))
    assert f"| tube | {whole['abs_rel']:.3f} [" in card[0]


def test_faults_cost_what_evaluate_says(card, place):
    model, data = BundlePredictor(place / "models/mock"), open_dataset(f"rendered:{place / 'data/tube'}")
    faults = group_of(card[1], "tube")["faults"]
    for fault, value in faults.items():
        corruption = None if fault == "clean" else fault
        report = evaluate(model, data, tasks=["depth"], corruption=corruption, limit=2).report
        assert value == pytest.approx(report["depth"]["model"]["all"]["abs_rel"])
    assert list(faults) == ["clean", "overexposure:3", "smoke:2"] and faults["smoke:2"] != faults["clean"]
    assert group_of(card[1], "ex vivo")["faults"] is None and "Worst fault: " in card[0]


def test_the_interval_holds_the_mean_and_draws_sequences(card):
    tube, still = group_of(card[1], "tube"), group_of(card[1], "ex vivo")
    low, high = tube["depth"]["model"]["abs_rel"]["interval"]
    assert low < tube["depth"]["model"]["abs_rel"]["value"] < high and tube["interval_over"] == "sequences"
    assert group_of(card[1], "cavity")["interval_over"] == "frames"
    assert still["depth"]["model"]["abs_rel"]["interval"] is None and still["images"] == 1


def test_intervals_shrink_with_more_sequences_and_not_with_more_frames():
    levels = np.tile((0.08, 0.12), 16)

    def width(sequences, frames):
        low, high = with_interval({str(i): [levels[i]] * frames for i in range(sequences)})["interval"]
        return high - low

    assert width(32, 10) < 0.6 * width(8, 10)
    assert width(8, 100) == pytest.approx(width(8, 10), rel=0.1)  # a hundred copies of one frame say no more than ten


def test_seeds_and_stages_are_mean_and_deviation_over_models(card, place):
    seeds, stages = card[1]["seeds"], card[1]["stages"]
    values = seeds["groups"]["tube"]["abs_rel"]["values"]
    own = group_of(card[1], "tube")["depth"]["model"]["abs_rel"]["value"]
    assert seeds["models"] == ["models/mock", "models/twin"] and values[0] == own != values[1]
    assert seeds["groups"]["tube"]["abs_rel"]["sd"] == pytest.approx(abs(values[1] - values[0]) / np.sqrt(2))
    assert stages["second"]["groups"] == seeds["groups"]
    assert stages["first"]["groups"]["tube"]["abs_rel"] == {"mean": values[1], "sd": None, "values": values[1:]}
    assert f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}" in card[0]


def test_no_path_of_the_machine_stands_in_the_card(card, place):
    for text in (card[0], json.dumps(card[1], ensure_ascii=False)):
        for path in {str(place), str(place.parent), str(Path.cwd()), str(Path.home()) + "/"}:
            assert path not in text
    assert "rendered:data/cavity" in card[0] and "data: elsewhere/scenes" in card[0]


def test_pictures_exist_and_show_something(card):
    text, numbers, out = card
    linked = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert sorted(linked) == sorted(f"card/{name}" for name in numbers["pictures"])
    assert len(linked) == 5 and sum(numbers["pictures"].values()) < 1_500_000
    for link in linked:
        picture = cv2.imread(str(out / link))
        assert picture.std() > 20 and picture.shape[1] == 960, link
    clip = numbers["real"][0]
    assert clip["facts"]["images"] == 8 and clip["facts"]["unreadable"] == 0 and clip["facts"]["surround"] > 0.2


def test_failures_are_the_worst_images(card, place, tmp_path):
    evaluate(BundlePredictor(place / "models/mock"), open_dataset(f"rendered:{place / 'data/tube'}"), out=tmp_path)
    rows = map(json.loads, (tmp_path / "images.jsonl").read_text().splitlines())
    worst_of_all = max((row for row in rows if row["predictor"] == "model"), key=lambda row: row["abs_rel"])
    first, second = (frame for frame in group_of(card[1], "tube")["failures"] if frame["kind"] == "worst")
    assert first["name"] == worst_of_all["name"] and first["abs_rel"] == pytest.approx(worst_of_all["abs_rel"])
    assert second["abs_rel"] <= first["abs_rel"] and second["name"].split("/")[0] != first["name"].split("/")[0]
    assert 0 < first["too_near"] + first["too_far"] <= 1 and f"`{first['name']}`" in card[0]


def test_made_again_from_the_cache_it_is_the_same_but_for_the_time(card, place, monkeypatch):
    monkeypatch.chdir(place)
    asked = []
    monkeypatch.setattr(BundlePredictor, "disparity", lambda *_: asked.append(1) or np.full((48, 64), 10, np.float32))
    again = make_card("models/mock", "card.yaml", "models/mock", open_model=BundlePredictor, cache="cache")
    first = card[1] | {"speed": again["speed"]}
    assert json.loads(json.dumps(again)) == first
    assert len(asked) == card_file.TIMED + card_file.WARM_UPS  # only to time it


def test_what_is_not_at_hand_gets_a_row_and_exit_code_3(card, place, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(place)
    plan = protocol(place, real=[{"name": "gone", "source": "data/gone.mp4"}], replicates=["runs/gone"], stages={})
    plan["groups"] = [plan["groups"][1], {"name": "absent", "data": f"simcol3d:{tmp_path}/absent", "zero_shot": True}]
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(plan))
    words = ["card", "models/mock", "--protocol", str(tmp_path / "card.yaml"), "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--cache", "cache", "--seeds-of", "models/twin"]) == 3
    assert "absent: not at hand" in capsys.readouterr().err
    text, numbers = (tmp_path / "out/README.md").read_text(), json.loads((tmp_path / "out/card.json").read_text())
    assert "**Incomplete.**" in text and "| absent (zero-shot) | not at hand |" in text
    assert "Not at hand (data/gone.mp4 does not exist)." in text and "Not at hand: runs/gone." in text
    assert not numbers["complete"] and len(numbers["problems"]) == 3 and str(tmp_path) not in json.dumps(numbers)
    assert numbers["seeds"]["models"] == ["models/mock", "models/twin"]


def test_pictures_of_an_earlier_card_go_and_a_readme_of_somebody_stays(place, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    plan = protocol(place, real=[], replicates=[], stages={}, groups=protocol(place)["groups"][1:2])
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(plan))
    out = tmp_path / "out"
    (out / "card").mkdir(parents=True)
    for name in ("old.jpg", "mine.jpg"):
        (out / "card" / name).write_bytes(b"x")
    (out / "card.json").write_text(json.dumps({"pictures": {"old.jpg": 1}}))
    make_card("models/mock", tmp_path / "card.yaml", out, open_model=BundlePredictor)
    assert sorted(path.name for path in (out / "card").iterdir()) == ["failures_cavity.jpg", "mine.jpg"]
    (out / "README.md").write_text("# my own page")
    with pytest.raises(CardError, match="was not written by endomust card"):
        make_card("models/mock", tmp_path / "card.yaml", out, open_model=BundlePredictor)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"group": []}, "did you mean 'groups'"),
        ({"groups": []}, "names no data set"),
        ({"groups": [{"name": "a"}]}, "the key 'data' is missing"),
        ({"groups": [{"name": "a b", "data": "x:y"}, {"name": "A_b", "data": "x:y"}]}, "stands twice"),
        ({"groups": [{"name": "a", "data": "x:y", "zero_shot": "yes"}]}, "must be of the kind bool"),
        ({"groups": [{"name": "a", "data": "x:y", "scaling": "mean"}]}, "use median or none"),
        ({"stages": ["one"]}, "must be a section"),
        ({"limits": 3}, "must be a list"),
        ({"faults": "smoke"}, "write smoke:1 to smoke:5"),
        ({"faults": "smole:2"}, "smole"),
    ],
)
def test_a_protocol_that_is_wrong_is_refused_in_words(change, words, tmp_path):
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(protocol(tmp_path) | change))
    with pytest.raises(CardError, match=re.escape(words)):
        read_protocol(tmp_path / "card.yaml")


def test_a_base_holds_where_a_protocol_says_nothing(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(protocol(tmp_path) | {"summary": "old", "speed": "slow"}))
    (tmp_path / "below/mine.yaml").write_text("base: ../card.yaml\nsummary: new\nfaults: []\n")
    base, plan = read_protocol(tmp_path / "card.yaml"), read_protocol(tmp_path / "below/mine.yaml")
    assert (plan.summary, plan.speed, plan.faults) == ("new", "slow", ()) and plan.groups == base.groups


@pytest.mark.parametrize(
    ("base", "words"),
    [("absent.yaml", "no protocol"), ("mine.yaml", "leads back"), ("list.yaml", "must be a section")],
)
def test_a_base_that_is_none_is_refused_in_words(base, words, tmp_path):
    (tmp_path / "list.yaml").write_text("[1, 2]")
    (tmp_path / "mine.yaml").write_text(f"base: {base}\n")
    with pytest.raises(CardError, match=words):
        read_protocol(tmp_path / "mine.yaml")


@pytest.mark.parametrize("name", ["card.yaml", "card-small.yaml"])
def test_the_protocols_that_ship_name_the_zero_shot_rows(name):
    plan = read_protocol(Path(__file__).resolve().parents[2] / "config" / name)
    trained = [group.name for group in plan.groups if not group.zero_shot]
    assert {name.removesuffix(", wide") for name in trained} == {"colon", "sinus", "laparo"}
    assert all(group.licence for group in plan.groups)


def test_a_busy_machine_says_nothing_of_speed(card):
    numbers = json.loads(json.dumps(card[1]))
    numbers["speed"] = {"depth": {"fastest": 0.01}, "motion": {"fastest": 0.005}, "load": 0.5}
    numbers["environment"]["cores"] = 2
    assert "real time at 25 images a second: depth 10.0 ms and motion 5.0 ms" in page(numbers)
    numbers["speed"]["depth"]["fastest"] = 0.04
    assert "slower than 25 images a second: depth 40.0 ms" in page(numbers)
    numbers["speed"]["load"] = 9.0
    assert "timed on a busy machine, so at most: depth 40.0 ms" in page(numbers)
    numbers["words"]["speed"] = "16 ms, measured by hand"
    assert "**Speed:** 16 ms, measured by hand" in page(numbers)


def test_facts_name_the_worst(card):
    numbers = json.loads(json.dumps(card[1]))
    for group in numbers["groups"]:
        group["depth"]["model"]["abs_rel"]["value"] = {"tube": 0.1, "cavity": 0.5, "ex vivo": 0.9}.get(
            group["name"], 0.2
        )
        group["curves"]["brightness"] = {"edges": [0, 100, 255], "abs_rel": [0.4, 0.1], "pixels": [50, 50]}
    text = " ".join(measured(numbers))
    assert "Worst domain: cavity (zero-shot), AbsRel 0.500; best: tube, AbsRel 0.100." in text
    assert "AbsRel is 0.350 on average, 250 % more than on those it saw (0.100)" in text
    assert "pixels of brightness 0 to 100 (of 255) have an AbsRel of 0.400, those of 100 to 255 0.100" in text
    assert (
        "On cavity (zero-shot) it is no better than a guess" in text and "Not metric" in text and "ex vivo" not in text
    )


def test_the_failure_sheet_has_the_signed_error_and_says_which_way():
    truth = np.tile(np.linspace(0.03, 0.09, 240, dtype=np.float32), (180, 1))
    truth[:, :20] = np.nan
    depth = truth * np.where(np.arange(240) < 120, 1 + ERROR_LIMIT, 1.0).astype(np.float32)
    rgb = np.full((180, 240, 3), (200, 100, 50), np.uint8)
    frames = [Shown(f"s/{kind}", kind, rgb, depth, truth, 0.2) for kind in ("best", "worst", "median", "worst")]
    sheet, facts = failure_sheet(frames)
    assert [fact["kind"] for fact in facts] == ["worst", "worst", "median"]
    assert facts[0]["too_far"] == pytest.approx(100 / 220) and facts[0]["too_near"] == 0
    error = sheet[-180:, 720:].astype(int)
    assert error[90, 60, 0] > error[90, 60, 2] + 80 and error[90, 200].min() > 220 and set(error[90, 5]) == {128}
    assert tuple(sheet[-90, 100]) == (200, 100, 50)


def test_an_instrument_that_is_nearer_than_what_lies_around_it():
    depth = np.full((96, 128), 0.06, np.float32)
    instrument = np.zeros((96, 128), bool)
    instrument[40:56, :60] = True
    depth[instrument] = 0.03
    nowhere = np.zeros_like(instrument)
    assert nearer_than_around(depth, instrument, nowhere) == pytest.approx(0.5)
    assert nearer_than_around(depth, nowhere, nowhere) is None
    assert nearer_than_around(np.full_like(depth, np.nan), instrument, nowhere) is None


def test_pictures_fit_the_size_that_is_asked_for():
    noise = {str(i): np.random.default_rng(i).integers(0, 256, (200, 300, 3), np.uint8) for i in range(2)}
    best, small = encoded(noise), encoded(noise, 80_000)
    assert sum(map(len, small.values())) <= 80_000 < sum(map(len, best.values()))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("see /home/me/data/simcol3d, then go", "see …/simcol3d, then go"),
        ("rendered:/data/a/b and '~/runs/x'", "rendered:…/b and '…/x'"),
        ("https://github.com/a/b is no path, nor is ATE /N, 3/4 or runs/test/colon", None),
    ],
)
def test_absolute_paths_are_cut_and_nothing_else(text, said):
    assert portable({"a": [text, 1.5, float("nan"), None, True]}) == {"a": [said or text, 1.5, None, None, True]}


def test_paths_are_shown_from_where_one_stands(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert shown_path("models/a") == "models/a" and shown_path(tmp_path / "models/a") == "models/a"
    assert shown_path("/elsewhere/models/a") == "…/a"


def test_deviation_is_that_of_a_sample():
    assert mean_and_sd([1.0, 3.0]) == {"mean": 2.0, "sd": pytest.approx(np.sqrt(2)), "values": [1.0, 3.0]}
    assert mean_and_sd([1.0])["sd"] is None
