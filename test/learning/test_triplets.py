"""A batch follows from step, size and seed alone; triplets never reach over a gap; jitter and mirror as by hand."""

import colorsys
import itertools
import threading

import numpy as np
import pytest
import torch

from endomust_core.data import DataError
from endomust_core.data.cache import CachedSequence
from endomust_core.learning.triplets import NO_AUGMENTATION, Augmentation, Batch, Triplets, colour_jitter, score_frames

HEIGHT, WIDTH = 12, 16
INTRINSICS = np.array((0.8, 1.0, 0.45, 0.52), np.float32)


def sequence(folder, name="a", index=range(8), level=0, intrinsics=INTRINSICS, instruments=True, depth=True):
    """Frames of noise whose first pixel tells `level` + position; the leftmost column is an instrument, depth 1 cm."""
    index = np.array(index)
    rgb = np.random.default_rng(level).integers(0, 256, (len(index), HEIGHT, WIDTH, 3), dtype=np.uint8)
    rgb[:, 0, :] = (level + np.arange(len(index)))[:, None, None]
    instrument = np.zeros((len(index), HEIGHT, WIDTH), bool)
    instrument[..., 0] = True
    truth = np.full((len(index), HEIGHT, WIDTH), 0.01, np.float16)
    truth[:, 0] = np.nan
    mask = instrument if instruments else None
    return CachedSequence(name, folder, rgb, index, truth if depth else None, mask, intrinsics, None, 0)


def levels(images):
    """What `sequence` has hidden in the first row."""
    return (images[:, 0, 0, WIDTH // 2] * 255).round().int().tolist()


def same(first, second):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) and not a.isnan().any() else str(a) == str(b)
        for a, b in zip(first.state().values(), second.state().values(), strict=True)
    )


# --- which triplets there are


def test_previous_target_and_next_lie_one_gap_apart(tmp_path):
    for gap in (1, 2, "3"):
        triplets = Triplets([sequence(tmp_path)], gap, NO_AUGMENTATION)
        k = int(gap)
        assert len(triplets) == 8 - 2 * k
        batch = triplets.batch(0, len(triplets), 0)
        assert sorted(levels(batch.target)) == list(range(k, 8 - k))
        assert levels(batch.previous) == [level - k for level in levels(batch.target)]
        assert levels(batch.next) == [level + k for level in levels(batch.target)]
        assert batch.names[0] == f"a/{levels(batch.target)[0]}+{k}"


def test_no_triplet_reaches_over_a_gap_or_into_another_sequence(tmp_path):
    missing = sequence(tmp_path, index=[0, 1, 2, 4, 5, 6, 7])
    other = sequence(tmp_path, "b", index=range(3), level=100)
    batch = Triplets([missing, other], 1, NO_AUGMENTATION).batch(0, 4, 0)
    assert sorted(levels(batch.target)) == [1, 4, 5, 101]
    assert {name for name in batch.names} == {"a/1+1", "a/5+1", "a/6+1", "b/1+1"}  # names count the true positions


def test_an_adaptive_gap_takes_each_frame_its_own(tmp_path):
    np.save(tmp_path / "gaps_2_12_8.npy", np.array([0, 1, 2, 0, 3, 2, 0, 0]))
    batch = Triplets([sequence(tmp_path)], "adaptive", NO_AUGMENTATION).batch(0, 4, 0)
    assert set(batch.names) == {"a/1+1", "a/2+2", "a/4+3", "a/5+2"}


@pytest.mark.parametrize(
    ("gap", "words"), [(5, "no triplet of 1 sequences"), (0, "from 1 on"), ("wide", "a number of frames or adaptive")]
)
def test_an_unusable_gap_says_what_to_do(tmp_path, gap, words):
    with pytest.raises(DataError, match=words):
        Triplets([sequence(tmp_path)], gap)


def test_sequences_of_different_sizes_are_refused(tmp_path):
    small = CachedSequence("s", tmp_path, np.zeros((4, 6, 8, 3), np.uint8), np.arange(4), None, None, None, None, 0)
    with pytest.raises(DataError, match="different sizes"):
        Triplets([sequence(tmp_path), small])


def test_a_limit_keeps_triplets_from_all_over(tmp_path):
    triplets = Triplets([sequence(tmp_path, index=range(102))], 1, NO_AUGMENTATION, limit=3)
    assert len(triplets) == 3 and set(triplets.batch(0, 3, 0).names) == {"a/1+1", "a/51+1", "a/100+1"}


# --- which batch a step gets


def test_an_epoch_visits_every_triplet_once_in_an_order_of_its_own(tmp_path):
    triplets = Triplets([sequence(tmp_path, index=range(34))], 1)  # 32 triplets
    seen = [[*itertools.chain(*(triplets.batch(4 * e + s, 8, 1).names for s in range(4)))] for e in range(2)]
    assert len(set(seen[0])) == 32 and set(seen[0]) == set(seen[1]) and seen[0] != seen[1]
    assert triplets.batch(0, 8, 2).names != seen[0][:8]
    assert triplets.steps_per_epoch(8) == 4 and triplets.steps_per_epoch(9) == 3  # the rest of 5 is dropped


def test_fewer_triplets_than_the_batch_repeat(tmp_path):
    triplets = Triplets([sequence(tmp_path, index=range(4))], 1)
    assert sorted(triplets.batch(0, 4, 0).names) == ["a/1+1", "a/1+1", "a/2+1", "a/2+1"]
    assert triplets.steps_per_epoch(4) == 1


def test_a_step_gives_the_same_batch_whatever_went_before(tmp_path):
    triplets = Triplets([sequence(tmp_path, index=range(20))], 1, Augmentation(time_reversal=True))
    first = triplets.batch(7, 4, 3)
    triplets.batch(0, 4, 9)
    assert same(first, Triplets(triplets.sequences, 1, triplets.augmentation).batch(7, 4, 3))
    assert not same(first, triplets.batch(8, 4, 3)) and not same(first, triplets.batch(7, 4, 4))


def test_augmentation_is_drawn_anew_when_a_triplet_comes_again(tmp_path):
    triplets = Triplets([sequence(tmp_path, index=range(3))], 1, Augmentation(jitter=1.0))
    colours = {float(triplets.batch(step, 1, 0).target_jittered.mean()) for step in range(6)}
    assert len(colours) == 6


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_change_nothing(tmp_path, workers):
    triplets = Triplets([sequence(tmp_path, index=range(20))], 1)
    ahead = triplets.prefetch(5, 4, 1, workers=workers)
    for step, batch in zip(range(5, 15), ahead, strict=False):
        assert same(batch, triplets.batch(step, 4, 1))
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("triplets")]


def test_prefetch_ends_after_the_steps_asked_for(tmp_path):
    triplets = Triplets([sequence(tmp_path)], 1)
    assert len(list(triplets.prefetch(3, 2, 0, workers=2, steps=5))) == 5
    assert not list(triplets.prefetch(3, 2, 0, workers=2, steps=0))


def test_the_parts_of_two_ranks_are_the_batch_of_one(tmp_path):
    both = [sequence(tmp_path, index=range(20)), sequence(tmp_path, "b", range(9), 50, None, False)]
    triplets = Triplets(both, 1, Augmentation(shared_jitter=False, time_reversal=True))
    for step in range(4):
        whole = triplets.batch(step, 6, 1)
        parts = [triplets.batch(step, 6, 1, rows) for rows in (slice(0, 3), slice(3, 6))]
        for name, value in whole.state().items():
            halves = [part.state()[name] for part in parts]
            joined = torch.cat(halves) if name != "names" else halves[0] + halves[1]
            assert str(joined) == str(value) if name in ("names", "intrinsics") else torch.equal(joined, value)


class Unreadable:
    """Frames on a disk that fails."""

    shape = (8, HEIGHT, WIDTH, 3)

    def __getitem__(self, at):
        raise OSError("input/output error")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_reaches_the_trainer(tmp_path, workers):
    good = sequence(tmp_path)
    bad = CachedSequence("bad", tmp_path, Unreadable(), good.index, None, None, None, None, 0)
    with pytest.raises(OSError, match="input/output error"):
        next(Triplets([bad], 1).prefetch(0, 2, 0, workers=workers))


# --- what is in a batch


def test_a_plain_batch_is_the_frames_themselves(tmp_path):
    source = sequence(tmp_path)
    triplets = Triplets([source], 1, NO_AUGMENTATION)
    batch = triplets.batch(0, 3, 0)
    i = [int(name.split("/")[1].split("+")[0]) for name in batch.names]
    frames = torch.from_numpy(source.rgb[i]).permute(0, 3, 1, 2).float() / 255
    assert torch.allclose(batch.target, frames, atol=1e-7) and batch.target.shape == (3, 3, HEIGHT, WIDTH)
    assert torch.equal(batch.target, batch.target_jittered) and batch.target.is_contiguous()
    assert batch.instrument_next.dtype == torch.bool and batch.instrument_next.shape == (3, 1, HEIGHT, WIDTH)
    assert batch.instrument_next[..., 0].all() and not batch.instrument_next[..., 1:].any()
    assert torch.equal(batch.intrinsics, torch.from_numpy(INTRINSICS).expand(3, 4))


def test_unknown_intrinsics_are_nan_and_no_masks_are_false(tmp_path):
    batch = Triplets([sequence(tmp_path, intrinsics=None, instruments=False)], 1).batch(0, 2, 0)
    assert batch.intrinsics.isnan().all() and not batch.instrument_target.any()


def test_the_mirror_turns_images_masks_and_the_optical_centre(tmp_path):
    source = sequence(tmp_path)
    plain = Triplets([source], 1, NO_AUGMENTATION).batch(0, 6, 0)
    mirrored = Triplets([source], 1, Augmentation(flip=1.0, jitter=0.0)).batch(0, 6, 0)
    for name in ("target", "previous", "next", "target_jittered", "instrument_target", "instrument_next"):
        assert torch.equal(getattr(mirrored, name), getattr(plain, name).flip(-1))
    assert mirrored.intrinsics[0].tolist() == pytest.approx([0.8, 1.0, 0.55, 0.52])
    # A pixel at u of the image lies at W-1-u of the mirrored one; (cx + 0.5) / W follows.
    cx = 0.45 * WIDTH - 0.5
    assert mirrored.intrinsics[0, 2].item() * WIDTH - 0.5 == pytest.approx(WIDTH - 1 - cx, abs=1e-5)


def test_time_reversal_exchanges_previous_and_next_in_half(tmp_path):
    source = sequence(tmp_path, index=range(202))
    batch = Triplets([source], 1, Augmentation(flip=0.0, jitter=0.0, time_reversal=True)).batch(0, 200, 0)
    steps = np.array(levels(batch.next)) - levels(batch.target)
    assert set(steps) == {-1, 1} and 70 < (steps == 1).sum() < 130
    assert np.array_equal(np.array(levels(batch.previous)) - levels(batch.target), -steps)
    assert all(("-" in name) == (step < 0) for name, step in zip(batch.names, steps, strict=True))


def test_half_of_the_triplets_are_jittered_and_the_clean_ones_stay(tmp_path):
    source = sequence(tmp_path, index=range(202))
    batch = Triplets([source], 1, Augmentation(flip=0.0)).batch(0, 200, 0)
    plain = Triplets([source], 1, NO_AUGMENTATION).batch(0, 200, 0)
    assert torch.equal(batch.target, plain.target) and torch.equal(batch.next, plain.next)
    changed = [not torch.equal(a, b) for a, b in zip(batch.target, batch.target_jittered, strict=True)]
    assert 70 < sum(changed) < 130
    for name in ("previous", "next"):  # a triplet is jittered as a whole
        pairs = zip(getattr(batch, name), getattr(batch, f"{name}_jittered"), strict=True)
        assert [not torch.equal(a, b) for a, b in pairs] == changed


@pytest.mark.parametrize("shared", [True, False])
def test_shared_jitter_changes_the_three_images_alike(tmp_path, shared):
    still = sequence(tmp_path)
    still.rgb[:] = still.rgb[:1]
    triplets = Triplets([still], 1, Augmentation(flip=0.0, jitter=1.0, shared_jitter=shared))
    batch = triplets.batch(0, 6, 0)
    assert torch.equal(batch.target, batch.previous)
    for b in range(6):
        assert torch.equal(batch.target_jittered[b], batch.previous_jittered[b]) == shared
        assert torch.equal(batch.target_jittered[b], batch.next_jittered[b]) == shared
    assert not torch.equal(batch.target_jittered[0], batch.target_jittered[1])


def test_jitter_stays_within_its_ranges(tmp_path):
    grey = sequence(tmp_path, index=range(202))
    grey.rgb[:] = 100
    batch = Triplets([grey], 1, Augmentation(jitter=1.0, contrast=0, saturation=0, hue=0)).batch(0, 200, 0)
    factors = batch.target_jittered.mean((1, 2, 3)) * 255 / 100
    assert 0.8 <= factors.min() < 0.83 and 1.17 < factors.max() <= 1.2 and abs(factors.mean() - 1) < 0.03


def test_a_batch_is_saved_moved_and_read_back(tmp_path):
    batch = Triplets([sequence(tmp_path)], 1).batch(0, 2, 0)
    torch.save(batch.state(), tmp_path / "batch.pt")
    assert same(batch, Batch(**torch.load(tmp_path / "batch.pt", weights_only=True)))
    moved = batch.to("cpu", channels_last=True)
    assert same(batch, moved)
    assert moved.target.is_contiguous(memory_format=torch.channels_last)
    assert batch.to("cpu").target.is_contiguous()


# --- colour jitter by hand


def pixels(*values):
    return np.array([values], np.uint8)


def test_brightness_multiplies_and_clamps():
    out = colour_jitter(pixels((100, 50, 0), (250, 10, 10)), 1.2, 1, 1, 0)[0] * 255
    assert out == pytest.approx(np.array([[120, 60, 0], [255, 12, 12]]), abs=1e-3)


def test_contrast_spreads_about_the_mean_grey():
    out = colour_jitter(pixels((0, 0, 0), (200, 200, 200)), 1, 0.8, 1, 0)[0] * 255
    assert out == pytest.approx(np.array([[20] * 3, [180] * 3]), abs=1e-3)
    bright = colour_jitter(pixels((0, 0, 0), (200, 200, 200)), 1.1, 0.8, 1, 0)[0] * 255  # about 110
    assert bright == pytest.approx(np.array([[22] * 3, [198] * 3]), abs=1e-3)


def test_saturation_mixes_with_the_luma_of_the_pixel():
    luma = 0.299 * 100 + 0.587 * 50 + 0.114 * 200  # 82.05
    out = colour_jitter(pixels((100, 50, 200)), 1, 1, 0.5, 0)[0, 0] * 255
    assert out == pytest.approx([(v + luma) / 2 for v in (100, 50, 200)], abs=1e-3)


@pytest.mark.parametrize(
    ("hue", "red_becomes"), [(1 / 3, (0, 1, 0)), (1 / 6, (1, 1, 0)), (-1 / 3, (0, 0, 1)), (-1 / 6, (1, 0, 1))]
)
def test_hue_turns_red_around_the_circle(hue, red_becomes):
    assert colour_jitter(pixels((255, 0, 0)), 1, 1, 1, hue)[0, 0] == pytest.approx(red_becomes, abs=1e-5)


@pytest.mark.parametrize("hue", [-0.1, -0.043, -1e-4, 0.0, 1e-4, 0.05, 0.1])
def test_hue_is_exact_on_any_colour(hue):
    rgb = np.random.default_rng(3).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    rgb[0, :4] = ((0, 0, 0), (255, 255, 255), (90, 90, 90), (255, 255, 0))
    expected = [
        colorsys.hsv_to_rgb((h + hue) % 1, s, v)
        for h, s, v in (colorsys.rgb_to_hsv(*p) for p in rgb.reshape(-1, 3) / 255)
    ]
    assert np.abs(colour_jitter(rgb, 1, 1, 1, hue).reshape(-1, 3) - expected).max() < 1e-5


def test_all_together_in_the_order_brightness_contrast_saturation_hue():
    rgb = np.random.default_rng(4).integers(60, 180, (4, 4, 3), dtype=np.uint8)
    luma = np.array((0.299, 0.587, 0.114))
    x = rgb / 255 * 1.1
    x = 0.9 * x + 0.1 * (x @ luma).mean()
    x = 1.2 * x - 0.2 * (x @ luma)[..., None]
    x = np.clip(x, 0, 1)
    hsv = [colorsys.rgb_to_hsv(*p) for p in x.reshape(-1, 3)]
    expected = np.array([colorsys.hsv_to_rgb((h - 0.05) % 1, s, v) for h, s, v in hsv]).reshape(4, 4, 3)
    assert colour_jitter(rgb, 1.1, 0.9, 1.2, -0.05) == pytest.approx(expected, abs=1e-5)


# --- validation


def test_scored_frames_have_a_truth(tmp_path):
    with_truth, without = sequence(tmp_path), sequence(tmp_path, "b", depth=False)
    frames = list(score_frames([with_truth, without], every=3))
    assert len(frames) == 3
    rgb, depth = frames[1]
    assert np.array_equal(rgb, with_truth.rgb[3]) and rgb.dtype == np.uint8
    assert depth.dtype == np.float32 and depth[1, 1] == pytest.approx(0.01, rel=1e-3) and np.isnan(depth[0]).all()
