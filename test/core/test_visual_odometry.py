"""A camera over a textured plane: rest, scale and its changes, loss and recovery, policies, covariance, same bits."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
from test_tracker import CAMERA, difference, moved, texture, view

from endomust_core.odometry import START_VARIANCE, UNKNOWN_VARIANCE, Odometry, inverse, se3, se3_log, so3_exp
from endomust_core.tracker import LEAST_POINTS
from endomust_core.visual_odometry import SPARSE, OdometrySettings, VisualOdometry

DARK = np.zeros((CAMERA.height, CAMERA.width), np.uint8)
FLAT = np.full((CAMERA.height, CAMERA.width), 90, np.uint8)
DEPTH = np.full(FLAT.shape, 0.05, np.float32)
NETWORK = se3(so3_exp([0.002, 0.001, -0.003]), [0.0003, 0.0002, 0.0004])
VEIL = np.clip(180 + np.random.default_rng(4).normal(0, 2, FLAT.shape), 0, 255).astype(np.uint8)


def path(number):
    """A smooth way through the world, half a millimetre an image."""
    return moved(0.5 * number, 3 * math.sin(0.15 * number), 0.2 * number, (0.002 * number, 0.003 * number, 0.0))


class Walk:
    """A camera on `path`, its odometry, and everything it has said."""

    def __init__(self, settings=None, unit=1.0):
        """`unit` metres are one unit of the networks."""
        self.odometry, self.unit, self.stamp, self.states = VisualOdometry(settings), unit, 0.0, []

    def show(self, number, grey=None, network=None, noise=0, **options):
        picture, depth = view(path(number))
        grey = picture if grey is None else grey
        if noise:
            random = np.random.default_rng(len(self.states))
            grey = np.clip(grey + random.normal(0, noise, grey.shape), 0, 255).astype(np.uint8)
        self.stamp += 0.04
        state = self.odometry.step(grey, depth / self.unit, CAMERA, network, self.stamp, **options)
        self.states.append(state)
        assert_sound(state)
        return state


def assert_sound(state):
    """All numbers finite, rotations that are some, covariances that filters take."""
    for T in (state.T_odom_camera, state.T_visual):
        assert np.isfinite(T).all()
        np.testing.assert_allclose(T[:3, :3] @ T[:3, :3].T, np.eye(3), atol=1e-12)
    covariances = [state.pose_covariance, state.twist_covariance]
    covariances += [] if state.motion_covariance is None else [state.motion_covariance]
    for covariance in covariances:
        assert np.isfinite(covariance).all() and covariance.max() <= UNKNOWN_VARIANCE
        np.testing.assert_array_equal(covariance, covariance.T)
        assert np.linalg.eigvalsh(covariance).min() > 0
    assert (state.twist is None) == (state.T_prev_curr is None or state.twist_covariance[0, 0] == UNKNOWN_VARIANCE)
    assert math.isfinite(state.depth_ratio) and state.depth_ratio > 0 and state.inliers <= state.tracked


def sigma(state):
    return np.sqrt(np.trace(state.pose_covariance[:3, :3]))


def test_a_walk_is_followed_in_metres_over_several_keyframes_without_any_network():
    walk = Walk()
    for number in range(30):
        state = walk.show(number)
        metres, radians = difference(state.T_odom_camera, path(number))
        assert metres < 4e-4 and radians < 0.012
    assert [state.state for state in walk.states] == ["INIT"] + ["OK"] * 29
    assert state.keyframe > walk.states[1].keyframe and state.source == "image" and state.moving
    assert state.depth_ratio == pytest.approx(1.0, abs=0.02)


def test_standing_still_under_noise_does_not_drift_and_grows_no_covariance():
    walk = Walk()
    for _ in range(3):
        walk.show(0, noise=2)
    early = sigma(walk.show(0, noise=2))
    wrong = moved(0.3, 0, 0.2, (0, 0.002, 0))  # what the network says all the time
    for _ in range(60):
        state = walk.show(0, network=wrong, noise=2)
    assert np.linalg.norm(state.T_odom_camera[:3, 3]) < 5e-5
    assert not state.moving and state.keyframe == walk.states[1].keyframe
    assert sigma(state) < 1.5 * early


def test_without_texture_the_network_is_believed_and_chained():
    walk = Walk()
    for number in range(4):
        state = walk.show(0, FLAT, network=NETWORK if number else None)
    assert (state.state, state.source, state.reason) == ("OK", "network", "few_points")
    np.testing.assert_allclose(state.T_odom_camera, np.linalg.matrix_power(NETWORK, 3), atol=1e-12)
    np.testing.assert_allclose(state.T_prev_curr, NETWORK, atol=1e-12)
    np.testing.assert_allclose(state.twist, se3_log(NETWORK) / 0.04, atol=1e-9)
    assert sigma(walk.states[1]) < sigma(walk.states[2]) < sigma(walk.states[3])


def test_with_everything_off_it_is_the_old_odometry():
    settings = OdometrySettings(odom_refine=False, odom_keyframe=False)
    walk, old = Walk(settings), Odometry()
    motions = [None, NETWORK, NETWORK, moved(30), NETWORK, moved(turn=(0, 0.4, 0)), NETWORK]
    for number, motion in enumerate(motions):
        state, before = walk.show(number, network=motion), old.step(motion, walk.stamp)
        assert state.state == before.state
        np.testing.assert_allclose(state.T_odom_camera, before.T_odom_camera, atol=1e-12)
        assert (state.twist is None) == (before.twist is None)
    assert state.segment == 2 and walk.states[-3].segment == 1 and state.source == "network"


def test_network_motions_stop_while_the_image_rests_where_only_keyframes_are_on():
    walk = Walk(OdometrySettings(odom_refine=False))
    for _ in range(20):
        state = walk.show(0, network=NETWORK, noise=2)
    assert state.source == "rest" and not state.moving
    assert np.linalg.norm(state.T_odom_camera[:3, 3]) <= np.linalg.norm(NETWORK[:3, 3]) * 1.01
    held = state.T_odom_camera
    state = walk.show(4, network=NETWORK)
    np.testing.assert_allclose(state.T_odom_camera, held @ NETWORK, atol=1e-12)


def test_without_keyframes_each_image_is_placed_against_the_one_before():
    walk = Walk(OdometrySettings(odom_keyframe=False))
    for number in range(6):
        state = walk.show(number)
    assert state.keyframe == walk.states[1].keyframe + 4
    assert difference(state.T_odom_camera, path(5))[0] < 3e-4


def test_units_of_the_networks_do_not_matter_and_scale_turns_them_into_metres():
    metres, units = Walk(), Walk(unit=0.5)
    for number in range(8):
        a, b = metres.show(number), units.show(number, scale=0.5)
    np.testing.assert_allclose(b.T_odom_camera, a.T_odom_camera, atol=1e-6)
    np.testing.assert_allclose(b.twist, a.twist, atol=1e-3)
    np.testing.assert_allclose(b.pose_covariance, a.pose_covariance, rtol=0.01, atol=1e-12)
    np.testing.assert_allclose(b.T_visual[:3, 3] * 0.5, a.T_visual[:3, 3], atol=1e-6)
    np.testing.assert_allclose(b.T_prev_curr[:3, 3] * 0.5, a.T_prev_curr[:3, 3], atol=1e-6)


def test_a_scale_that_changes_moves_nothing_at_rest_and_never_makes_the_pose_jump():
    walk = Walk()
    for number in range(10):
        before = walk.show(number)
    after = walk.show(9, scale=3.0)
    assert difference(after.T_odom_camera, before.T_odom_camera)[0] < 1e-4
    state = walk.show(10, scale=3.0)
    step = np.linalg.norm(state.T_odom_camera[:3, 3] - after.T_odom_camera[:3, 3])
    assert step == pytest.approx(3 * np.linalg.norm(path(10)[:3, 3] - path(9)[:3, 3]), rel=0.15)


def test_a_moving_instrument_is_an_outlier():
    walk, tool = Walk(), texture(3)
    for number in range(12):
        grey = view(path(number))[0].copy()
        grey[40:100, 20 + 4 * number : 60 + 4 * number] = tool[40:100, 40:80]
        state = walk.show(number, grey)
    assert difference(state.T_odom_camera, path(11))[0] < 4e-4


def test_a_mask_keeps_points_away():
    walk, mask = Walk(), np.zeros(FLAT.shape, bool)
    mask[:, :80] = True
    first, second = walk.show(0, mask=mask), walk.show(1, mask=mask)
    assert (walk.odometry._key.points.pixel[:, 0] < 80).all()
    assert first.state == "INIT" and second.state == "OK" and 16 <= second.inliers < 120


def test_a_keyframe_with_few_points_that_fails_leaves_the_answer_to_the_network():
    walk, mask = Walk(), np.zeros(FLAT.shape, bool)
    mask[20:84, 30:94] = True
    walk.show(0, mask=mask)
    assert LEAST_POINTS <= len(walk.odometry._key.points) < SPARSE
    elsewhere = view(path(0), picture=texture(8))[0]
    state = walk.show(0, elsewhere, network=NETWORK, mask=mask)
    assert (state.state, state.source, state.reason) == ("OK", "network", "few_points")
    np.testing.assert_allclose(state.T_odom_camera, NETWORK, atol=1e-9)


FAULTS = {"dark": DARK, "smoke": VEIL}


@pytest.mark.parametrize("reason", FAULTS)
def test_a_fault_is_lost_at_once_holds_the_pose_and_the_right_place_is_found_again(reason):
    walk = Walk()
    for number in range(10):
        before = walk.show(number)
    for number in range(10, 18):
        lost = walk.show(number, FAULTS[reason], network=NETWORK)
        assert (lost.state, lost.reason, lost.twist, lost.T_prev_curr) == ("LOST", reason, None, None)
        np.testing.assert_array_equal(lost.T_odom_camera, before.T_odom_camera)
        np.testing.assert_array_equal(lost.pose_covariance, UNKNOWN_VARIANCE * np.eye(6))
    state = walk.show(18)
    assert state.state == "OK" and state.segment == before.segment and state.T_prev_curr is None
    assert difference(state.T_odom_camera, path(18))[0] < 6e-4
    assert walk.show(19).twist is not None and sigma(state) < 0.005


@pytest.mark.parametrize("policy", ["hold", "null", "reset"])
def test_a_place_never_seen_before_begins_a_new_segment_at_the_pose_held(policy):
    walk, elsewhere = Walk(OdometrySettings(odom_on_lost=policy, odom_lost_frames=3)), texture(8)
    for number in range(6):
        before = walk.show(number)
    for number in range(3):
        lost = walk.show(6, view(path(number), picture=elsewhere)[0])
        assert lost.withheld == (policy == "null" and number == 2)
    assert lost.state == ("INIT" if policy == "reset" else "LOST") and lost.reason == "fast"
    state = walk.show(6, view(path(3), picture=elsewhere)[0])
    assert state.state == "OK" and state.segment == before.segment + 1 and not state.withheld
    expected = before.T_odom_camera @ inverse(path(2)) @ path(3)
    assert difference(state.T_odom_camera, expected)[0] < 4e-4
    assert difference(state.T_visual, inverse(path(2)) @ path(3))[0] < 4e-4
    assert (sigma(state) > 0.02) == (policy != "reset")  # as far as it may have gone unseen


def test_more_than_the_gate_is_lost_though_every_point_is_found():
    walk = Walk(OdometrySettings(odom_max_translation=0.001))
    walk.show(0)
    walk.show(1)
    state = walk.show(5)
    assert (state.state, state.reason) == ("LOST", "fast")
    assert difference(walk.show(6).T_odom_camera, path(6))[0] > 1e-3  # 5 images' way is still more than two gates
    assert walk.show(2).state == "OK"


def test_darkness_without_a_map_is_lost_and_a_dark_start_is_not():
    walk = Walk()
    assert walk.show(0, DARK).state == "INIT"
    assert walk.show(0, FLAT, network=NETWORK).state == "OK"
    assert walk.show(0, DARK, network=NETWORK).reason == "dark"
    assert walk.show(0, FLAT, network=NETWORK).state == "OK"


def test_without_network_and_texture_it_is_lost_once_and_one_segment_later_on_its_way_again():
    walk = Walk()
    walk.show(0)
    walk.show(1)
    walk.odometry.reset()
    walk.show(0, FLAT, network=NETWORK)
    walk.show(0, FLAT, network=NETWORK)
    lost = [walk.show(0, FLAT) for _ in range(4)]
    assert {state.reason for state in lost} == {"few_points"} and {state.state for state in lost} == {"LOST"}
    assert walk.show(0).state == "LOST"  # but now there is a map
    state = walk.show(1)
    assert state.state == "OK" and state.twist is not None and state.segment == lost[0].segment + 1


def test_two_images_at_one_time_and_time_that_jumps_are_harmless():
    walk = Walk()
    walk.show(0)
    first = walk.show(1)
    walk.stamp -= 0.04
    again = walk.show(1)
    assert again.state == "OK" and again.twist is None
    assert difference(again.T_odom_camera, first.T_odom_camera)[0] < 1e-6
    walk.stamp += 1e6
    assert np.linalg.norm(walk.show(2).twist) < 1e-3
    walk.stamp = -5.0
    assert walk.show(3).twist is None


def test_an_unbelievable_motion_of_the_network_does_not_matter_where_the_image_shows_it():
    for wrong in (moved(500), np.full((4, 4), np.nan), np.zeros((4, 4))):
        walk = Walk()
        walk.show(0)
        assert difference(walk.show(1, network=wrong).T_odom_camera, path(1))[0] < 2e-4


def test_reset_and_set_pose():
    walk, start = Walk(), moved(10, 20, 30, (0.1, 0.2, 1.5))
    walk.show(0)
    walk.show(1)
    walk.odometry.set_pose(start, np.eye(6) * 1e-4)
    state = walk.show(2)
    assert difference(state.T_odom_camera, start @ inverse(path(1)) @ path(2))[0] < 2e-4
    assert state.segment == 0 and state.keyframe == walk.states[1].keyframe  # the map was kept
    assert np.diagonal(state.pose_covariance).min() > 0.9e-4
    walk.odometry.reset(start)
    state = walk.show(3)
    assert state.state == "INIT" and state.segment == 1
    np.testing.assert_allclose(state.T_odom_camera, start, atol=1e-12)
    assert np.diagonal(state.pose_covariance).max() < 2 * START_VARIANCE
    with pytest.raises(ValueError, match="finite 4x4"):
        walk.odometry.reset(np.full((4, 4), np.inf))
    with pytest.raises(ValueError, match="finite 6x6"):
        walk.odometry.set_pose(start, -np.eye(6))


def test_another_image_size_begins_another_map_and_goes_on():
    walk = Walk()
    walk.show(0)
    before = walk.show(1)
    camera = CAMERA.resized(320, 256)
    grey, depth = view(path(2), camera)
    state = walk.odometry.step(grey, depth, camera, NETWORK, walk.stamp + 0.04)
    np.testing.assert_allclose(state.T_odom_camera, before.T_odom_camera @ NETWORK, atol=1e-9)
    grey, depth = view(path(3), camera)
    assert walk.odometry.step(grey, depth, camera, NETWORK, walk.stamp + 0.08).source == "image"


def test_the_same_images_give_the_same_bits_whatever_other_threads_do_with_opencv():
    walks, before = [], cv2.getNumThreads()
    for seed, threads in ((1, 1), (7, 2)):
        cv2.setRNGSeed(seed)
        cv2.setNumThreads(threads)
        walk = Walk()
        for number in [*range(8), 25, 8, 9]:
            walk.show(number, DARK if number == 5 else None, noise=1)
        walks.append(walk)
    cv2.setNumThreads(before)
    for a, b in zip(walks[0].states, walks[1].states, strict=True):
        np.testing.assert_array_equal(a.T_odom_camera, b.T_odom_camera)
        np.testing.assert_array_equal(a.pose_covariance, b.pose_covariance)


def test_covariance_scale_and_scale_sigma_widen_what_goes_out():
    plain, wide = Walk(), Walk(OdometrySettings(odom_covariance_scale=4.0))
    for number in range(5):
        a, b = plain.show(number), wide.show(number)
    np.testing.assert_allclose(b.pose_covariance, 4 * a.pose_covariance)
    np.testing.assert_allclose(b.twist_covariance, 4 * a.twist_covariance)
    doubtful = Walk()
    for number in range(5):
        c = doubtful.show(number, scale_sigma=0.5)
    way = a.T_odom_camera[:3, 3]
    np.testing.assert_allclose(c.pose_covariance[:3, :3] - a.pose_covariance[:3, :3], 0.25 * np.outer(way, way))


def test_depth_whose_scale_flickers_makes_the_odometry_less_certain():
    steady, nervous = Walk(), Walk()
    for number in range(60):
        steady.show(number)
        nervous.unit = math.exp(0.25 * math.sin(1.7 * number))  # the unit of the networks is another in every image
        nervous.show(number)
    calm, wide = (walk.states[-1].pose_covariance.trace() for walk in (steady, nervous))
    assert wide > 3 * calm
    assert nervous.states[-1].twist_covariance.trace() > 3 * steady.states[-1].twist_covariance.trace()


def test_settings_may_be_any_object_with_the_fields_and_may_change_between_images():
    class Parameters:
        odom_keyframe = odom_refine = True
        odom_max_translation, odom_max_rotation, odom_lost_frames = 0.02, 0.35, 5
        odom_on_lost, odom_covariance_scale = "hold", 1.0

    walk = Walk(Parameters())
    walk.show(0)
    walk.odometry.settings = replace(OdometrySettings(), odom_max_translation=1e-5)
    assert walk.show(1).state == "LOST"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"grey": DARK[:-1]}, "one size for all three"),
        ({"grey": DARK.astype(float)}, "uint8"),
        ({"depth": DEPTH[:, :-1]}, "one size for all three"),
        ({"mask": np.ones((3, 3), bool)}, "INTER_NEAREST"),
        ({"scale": math.nan}, "positive and finite"),
        ({"scale": 0.0}, "positive and finite"),
        ({"camera": replace(CAMERA, model="plumb_bob", D=(0.1, 0, 0, 0, 0))}, "undistort"),
        ({"T_prev_curr": np.eye(3)}, "must be 4x4"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_words(change, words):
    given = {"grey": FLAT, "depth": DEPTH, "camera": CAMERA, "T_prev_curr": None, "stamp": 0.0} | change
    with pytest.raises(ValueError, match=words):
        VisualOdometry().step(**given)


def test_an_unknown_policy_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match="hold, null, reset"):
        VisualOdometry(OdometrySettings(odom_on_lost="stop")).step(FLAT, DEPTH, CAMERA, None, 0.0)


def odometry_check():
    """The measuring module; it renders, so it needs torch."""
    pytest.importorskip("torch")
    from endomust_core.simulation import odometry_check

    return odometry_check


def test_drift_is_zero_but_for_scale_and_a_doubled_turn_is_seen():
    check, truth = odometry_check(), np.array([path(number) for number in range(40)])
    half = truth.copy()
    half[:, :3, 3] *= 0.5
    row = check.drift(half, truth)
    assert row["scale"] == pytest.approx(2) and row["ate_mm"] < 1e-6 and row["rpe_second_mm"] < 1e-6
    turned = truth.copy()
    turned[20:] = truth[20:] @ moved(turn=(0, 0, math.radians(1)))
    assert check.drift(turned, truth)["rpe_image_deg"] == pytest.approx(math.sqrt(1 / 39), rel=1e-3)


def test_nees_of_errors_drawn_from_the_covariance_is_six():
    check, random = odometry_check(), np.random.default_rng(0)
    truth = np.array([path(number) for number in range(2000)])
    truth[:, :3, 3] *= 0.1
    C = np.diag([1e-8, 2e-8, 3e-8, 1e-6, 2e-6, 3e-6])
    estimate = truth.copy()
    for T in estimate[1:]:
        error = random.multivariate_normal(np.zeros(6), C)
        T[:3, :3], T[:3, 3] = so3_exp(error[3:]) @ T[:3, :3], T[:3, 3] + error[:3]
    covariance = np.tile(C, (2000, 1, 1))
    errors = check.nees(estimate, covariance, truth)
    assert errors.mean() == pytest.approx(6, abs=0.4) and check._inside(errors) == pytest.approx(0.95, abs=0.02)
    covariance[5] = UNKNOWN_VARIANCE * np.eye(6)
    assert len(check.nees(estimate, covariance, truth)) == len(errors) - 1


def test_what_is_lost_is_counted_as_the_definition_says():
    check, truth = odometry_check(), np.array([path(number) for number in range(12)])
    sequence = check.Sequence("x-1", CAMERA, None, None, truth, None, None, None, None)
    lost = np.isin(np.arange(12), (3, 4))
    faulty = check.Faulty(sequence, np.arange(12), lost, (("blackout", 3, 5),))
    said = ["OK", "LOST", "OK", "LOST", "OK", "LOST", "LOST", "OK", "LOST", "OK", "OK", "OK"]  # 5 and 6: looking
    blank = Walk().show(0)
    states = [replace(blank, state=word, T_odom_camera=T) for word, T in zip(said, truth, strict=True)]
    scores = check.lost_scores(faulty, states)
    assert (scores["true"], scores["false"], scores["missed"]) == (1, 2, 1)
    ending = scores["endings"][0]
    assert (ending["images"], ending["same_segment"]) == (2, True) and ending["error_mm"] < 1e-9
