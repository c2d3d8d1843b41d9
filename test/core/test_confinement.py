"""Paths from outside: what leads out of the allowed folders is refused in words, however it is written."""

import os
from pathlib import Path

import pytest

from endomust_core import confinement
from endomust_core.confinement import (
    PARAMETERS,
    VARIABLE,
    ConfinementError,
    allowed_folders,
    check_parameters,
    confined,
    own_folders,
    readable,
    writable_file,
    writable_folder,
)


@pytest.fixture
def home(tmp_path):
    """A home folder, and an environment that knows nothing else."""
    folder = tmp_path / "home"
    folder.mkdir()
    return {"HOME": str(folder)}


@pytest.fixture
def limited(tmp_path):
    """Two allowed folders."""
    for name in ("models", "data"):
        (tmp_path / name).mkdir()
    return {VARIABLE: f"{tmp_path / 'models'}{os.pathsep}{tmp_path / 'data'}", "HOME": str(tmp_path)}


# ---- the folders of ENDOMUST_PATHS ----


def test_without_the_variable_reading_knows_no_limit():
    assert allowed_folders({}) is None
    assert readable("/etc/hostname", "model.path", {}) == Path("/etc/hostname").resolve()


@pytest.mark.parametrize(
    "value, words", [("", "names no folder"), (":", "names no folder"), ("models", "not absolute")]
)
def test_a_variable_that_names_nothing_does_not_open_everything(value, words):
    with pytest.raises(ConfinementError, match=words):
        readable("/etc/hostname", "model.path", {VARIABLE: value})


def test_everything_below_each_allowed_folder_may_be_used(limited, tmp_path):
    for path in ("models", "models/tiny/manifest.yaml", "data/new/case.yaml"):
        assert readable(tmp_path / path, "model.path", limited) == tmp_path / path
    assert writable_folder(tmp_path / "data" / "not" / "there", "snapshot.dir", limited)


def test_our_own_folders_may_be_written_to_wherever_the_rest_is_confined(limited, tmp_path):
    """Defaults of scale.file and snapshot.dir lie there; a variable for models must not break them."""
    own = tmp_path / ".config" / "endomust" / "scale.yaml"
    assert writable_file(own, "scale.file", (".yaml",), limited) == own
    assert writable_folder(tmp_path / ".local/share/endomust/snapshots", "snapshot.dir", limited)
    for call in (readable, writable_folder):
        with pytest.raises(ConfinementError, match="outside"):
            call(tmp_path / ".config" / "autostart", "snapshot.dir", limited)
    with pytest.raises(ConfinementError, match="outside"):
        readable(own, "model.path", limited)


@pytest.mark.parametrize("path", ["..", "models/../home", "models/../../etc", "models2", "modelsX/tiny", "/", "/etc"])
def test_dots_and_neighbours_do_not_lead_out(limited, tmp_path, path):
    with pytest.raises(ConfinementError, match=f"model.path is .*outside of the folders that {VARIABLE}"):
        readable(str(tmp_path / path), "model.path", limited)


def test_dots_that_stay_inside_are_resolved(limited, tmp_path):
    assert readable(f"{tmp_path}/models/a/../b", "model.path", limited) == tmp_path / "models" / "b"


def test_a_link_is_judged_by_where_it_leads(limited, tmp_path):
    outside = tmp_path / "secret"
    outside.mkdir()
    (tmp_path / "models" / "link").symlink_to(outside)
    (tmp_path / "models" / "file.yaml").symlink_to(outside / "file.yaml")  # which does not even exist
    (tmp_path / "shortcut").symlink_to(tmp_path / "models")
    for path in ("models/link", "models/link/below", "models/file.yaml"):
        with pytest.raises(ConfinementError, match="secret"):
            readable(tmp_path / path, "model.path", limited)
    assert readable(tmp_path / "shortcut" / "tiny", "model.path", limited) == tmp_path / "models" / "tiny"


def test_an_allowed_folder_may_itself_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    env = {VARIABLE: str(tmp_path / "link")}
    assert readable(tmp_path / "link" / "a", "model.path", env) == tmp_path / "real" / "a"


def test_a_relative_path_counts_from_the_current_folder(limited, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "models")
    assert readable("tiny", "model.path", limited) == tmp_path / "models" / "tiny"
    monkeypatch.chdir("/")
    with pytest.raises(ConfinementError, match="outside"):
        readable("tiny", "model.path", limited)


@pytest.mark.parametrize("path, words", [("", "is empty"), ("  ", "is empty"), ("a\0b", "zero byte")])
def test_no_path_at_all_is_named(path, words):
    with pytest.raises(ConfinementError, match=f"scale.file .*{words}"):
        confined(path, None, "scale.file")


def test_what_the_system_cannot_resolve_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ConfinementError):
        confined("~nobody-of-this-name/x", (tmp_path,), "model.path")
    with pytest.raises(ConfinementError):
        confined("x" * 100_000, (tmp_path / "elsewhere",), "model.path")
    with pytest.raises(ConfinementError):
        confined(tmp_path / "loop", (tmp_path / "elsewhere",), "model.path")


# ---- writing without ENDOMUST_PATHS ----


def test_the_users_own_folders_need_not_exist(home):
    root = Path(home["HOME"])
    for path in (".ros/snapshots", ".local/share/endomust/snapshots", ".cache/endomust", ".config/endomust"):
        assert writable_folder(root / path, "snapshot.dir", home) == root / path
    assert own_folders({**home, "XDG_DATA_HOME": "/big", "ROS_HOME": "/ros"})[0] == Path("/ros")
    assert Path("/big/endomust") in own_folders({**home, "XDG_DATA_HOME": "/big"})
    assert root / ".local/share/endomust" in own_folders({**home, "XDG_DATA_HOME": "relative"})


def test_an_ordinary_folder_must_be_there_already(home, tmp_path):
    with pytest.raises(ConfinementError, match="make it first"):
        writable_folder(tmp_path / "case", "snapshot.dir", home)
    (tmp_path / "case").mkdir()
    assert writable_folder(tmp_path / "case", "snapshot.dir", home) == tmp_path / "case"


@pytest.mark.parametrize("path", ["/", "/etc", "/etc/cron.d", "/usr/lib/../bin", "/dev/shm", "/var/tmp", "/proc/self"])
def test_system_folders_are_not_written_to(home, path):
    with pytest.raises(ConfinementError, match="snapshot.dir is .*system folder"):
        writable_folder(path, "snapshot.dir", home)


@pytest.mark.parametrize("path", [".ssh", ".config/autostart", ".config", "cases/.git", ".cache/other"])
def test_hidden_folders_of_other_programs_are_not_written_to(home, path):
    folder = Path(home["HOME"], path)
    folder.mkdir(parents=True)
    with pytest.raises(ConfinementError, match="hidden folder"):
        writable_folder(folder, "snapshot.dir", home)


def test_a_link_into_a_system_folder_is_one(home):
    link = Path(home["HOME"], "snapshots")
    link.symlink_to("/etc")
    with pytest.raises(ConfinementError, match="system folder"):
        writable_folder(link, "snapshot.dir", home)


def test_a_user_whose_home_lies_in_a_system_folder_may_use_it(monkeypatch, tmp_path):
    monkeypatch.setattr(confinement, "SYSTEM", (tmp_path,))  # as /var is, where services live
    home = tmp_path / "lib" / "endomust"
    (home / "cases").mkdir(parents=True)
    assert writable_folder(home / "cases", "snapshot.dir", {"HOME": str(home)}) == home / "cases"
    with pytest.raises(ConfinementError, match="system folder"):
        writable_folder(tmp_path / "lib", "snapshot.dir", {"HOME": str(home)})


def test_a_folder_is_no_file_and_a_file_no_folder(home, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfinementError, match="is a file"):
        writable_folder(tmp_path / "file", "snapshot.dir", home)
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfinementError, match="is a folder"):
        writable_file(tmp_path / "folder.yaml", "scale.file", (".yaml",), home)


@pytest.mark.parametrize("name", [".bashrc", ".yaml", "scale.desktop", "authorized_keys", "scale"])
def test_a_written_file_has_the_name_of_its_kind(home, name):
    with pytest.raises(ConfinementError, match=r"ends in \.yaml or \.yml"):
        writable_file(Path(home["HOME"], name), "scale.file", (".yaml", ".yml"), home)


def test_a_link_that_hides_another_kind_of_file_is_refused(home):
    root = Path(home["HOME"])
    (root / ".profile").touch()
    (root / "scale.yaml").symlink_to(root / ".profile")
    with pytest.raises(ConfinementError, match="link"):
        writable_file(root / "scale.yaml", "scale.file", (".yaml",), home)


def test_a_scale_file_in_an_ordinary_folder_is_fine(home):
    path = Path(home["HOME"], "scale.yaml")
    assert writable_file(path, "scale.file", (".yaml",), home) == path


# ---- the parameters of the node ----


def test_every_path_parameter_is_confined_and_empty_ones_are_defaults(limited, tmp_path):
    check_parameters(dict.fromkeys(PARAMETERS, ""), limited)
    check_parameters({"frames.odom": "/etc"}, limited)  # no path
    for name in PARAMETERS:
        check_parameters({name: str(tmp_path / "data" / "a.yaml")}, limited)
        with pytest.raises(ConfinementError, match=name):
            check_parameters({name: "/etc/a.yaml"}, limited)


def test_no_path_parameter_is_forgotten():
    table = pytest.importorskip("endomust_ros.parameters", reason="the node's parameters", exc_type=ImportError)
    ends = (".path", ".file", ".dir", "_dir", ".folder")
    assert {name for name in table.ABOUT if name.endswith(ends)} == PARAMETERS.keys()
