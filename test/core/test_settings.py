"""Settings from the command line: what is meant is found, what is wrong is said."""

import re

import pytest

from endomust_core.settings import Settings, settings_from, words_of

WORDS = [
    "odom.refine=false",
    "depth.temporal_filter=0.5",
    "input.roi=[1, 2, 30, 40]",
    "scale.mode=none",
    "odom.max_translation=1",
]


def test_words_become_settings_and_words_again():
    settings = settings_from(WORDS)
    assert settings == Settings(
        odom_refine=False,
        depth_temporal_filter=0.5,
        input_roi=(1, 2, 30, 40),
        scale_mode="none",
        odom_max_translation=1.0,
    )
    assert settings_from(words_of(settings)) == settings and words_of(Settings()) == []


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("odom.refine", "write NAME=VALUE"),
        ("odom.refien=false", "did you mean 'odom.refine'?"),
        ("odom.refine=5", "odom.refine is '5'; it must be a bool such as True"),
        ("depth.temporal_filter=much", "it must be a float such as 0.0"),
        ("input.roi={", "it must be a tuple"),
    ],
)
def test_what_cannot_be_is_said(word, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        settings_from([word])
