"""Scale files: what is saved comes back, and what cannot be a scale is refused in words. m per network unit."""

import os

import numpy as np
import pytest
import yaml

from endomust_core.scale_file import ScaleFileError, load_scale, save_scale

DIGEST = "ab" * 32


def saved(path, **changed):
    """A good file, then some of its keys changed (None removes one)."""
    save_scale(path, 0.93, 0.012, {"digest": DIGEST, "baseline_m": 0.041})
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content.update(changed)
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}), encoding="utf-8")
    return path


def test_what_is_saved_comes_back(tmp_path):
    facts = {"digest": DIGEST, "source": "stereo", "matches": np.int64(312), "residual": np.float32(0.5)}
    path = save_scale(tmp_path / "new" / "scale.yaml", np.float64(0.93), 0.012, facts)
    scale = load_scale(path, DIGEST)
    assert (scale.factor, scale.sigma, scale.digest, scale.source) == (0.93, 0.012, DIGEST, "stereo")
    assert scale.facts == {"matches": 312, "residual": 0.5}
    assert scale.date.endswith("+00:00")


def test_the_scale_of_another_model_is_refused(tmp_path):
    path = saved(tmp_path / "scale.yaml")
    with pytest.raises(ScaleFileError, match="measured with the model abababababab, cdcdcdcdcdcd is running"):
        load_scale(path, "cd" * 32)
    assert load_scale(path).factor == 0.93  # without a digest nobody asks


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"factor": -0.5}, "factor is -0.5"),
        ({"factor": 0}, "factor is 0"),
        ({"factor": 1e9}, "factor is 1"),
        ({"factor": float("nan")}, "not a finite number"),
        ({"factor": "0.93 m"}, "not a finite number"),
        ({"factor": True}, "not a finite number"),
        ({"sigma": -0.01}, "sigma is -0.01"),
        ({"sigma": 3.0}, "sigma is 3.0"),
        ({"sigma": None}, "misses sigma"),
        ({"fcator": 2.0}, "unknown fcator"),
        ({"digest": ""}, "which model"),
        ({"facts": [1, 2]}, "facts"),
        ({"format": "something else"}, "no scale file"),
    ],
)
def test_nonsense_is_refused_with_words_that_say_what_to_do(tmp_path, changed, words):
    path = saved(tmp_path / "scale.yaml", **changed)
    with pytest.raises(ScaleFileError, match=words) as refusal:
        load_scale(path)
    assert "measure the scale again" in str(refusal.value)


@pytest.mark.parametrize("text", ["factor: [1", "just a sentence", "", "- 1\n- 2\n"])
def test_a_file_that_is_no_scale_is_refused(tmp_path, text):
    path = tmp_path / "scale.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ScaleFileError, match="not YAML|no scale file"):
        load_scale(path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "scale.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ScaleFileError, match="not YAML"):
        load_scale(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ScaleFileError, match="there is no scale file"):
        load_scale(tmp_path / "none.yaml")
    with pytest.raises(ScaleFileError, match="cannot be read"):
        load_scale(tmp_path)


@pytest.mark.parametrize(("factor", "sigma"), [(-1.0, 0.01), (float("nan"), 0.01), (1.0, float("inf")), (0.0, 0.01)])
def test_nonsense_is_not_saved_and_leaves_what_was_there(tmp_path, factor, sigma):
    path = saved(tmp_path / "scale.yaml")
    before = path.read_bytes()
    with pytest.raises(ScaleFileError):
        save_scale(path, factor, sigma, {"digest": DIGEST})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["scale.yaml"]


def test_saving_without_the_model_is_refused(tmp_path):
    with pytest.raises(ScaleFileError, match="digest"):
        save_scale(tmp_path / "scale.yaml", 1.0, 0.01, {})


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = saved(tmp_path / "scale.yaml")
    before = path.read_bytes()

    def fail(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        save_scale(path, 2.0, 0.01, {"digest": DIGEST})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["scale.yaml"]
