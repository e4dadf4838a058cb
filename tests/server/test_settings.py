from pathlib import Path

import pytest

from server.settings import Settings, SettingsError


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("PROMPTMUX_"):
            monkeypatch.delenv(name)


def test_defaults_listen_on_loopback() -> None:
    settings = Settings.load()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert (settings.admin_host, settings.admin_port) == ("127.0.0.1", 8001)


def test_flag_beats_variable_beats_file_beats_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "c.toml"
    config.write_text("port = 1\nadmin_port = 2\nmax_inputs = 3\n")
    monkeypatch.setenv("PROMPTMUX_PORT", "10")
    monkeypatch.setenv("PROMPTMUX_ADMIN_PORT", "20")
    settings = Settings.load(["--port", "100", "--config", str(config)])
    assert (settings.port, settings.admin_port, settings.max_inputs) == (100, 20, 3)
    monkeypatch.setenv("PROMPTMUX_CONFIG", str(config))
    assert Settings.load([]).max_inputs == 3


@pytest.mark.parametrize("name", sorted(set(Settings.model_fields) - {"config"}))
def test_every_setting_is_a_flag_a_variable_and_a_key(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    field = Settings.model_fields[name]
    assert field.description
    value = _another(name, field.default)
    flag = "--" + name.replace("_", "-")
    expected = getattr(Settings.load([flag] if value == "true" else [flag, value]), name)
    assert expected != field.default
    monkeypatch.setenv(f"PROMPTMUX_{name.upper()}", value)
    assert getattr(Settings.load(), name) == expected
    monkeypatch.delenv(f"PROMPTMUX_{name.upper()}")
    config = tmp_path / "c.toml"
    text = isinstance(field.default, str | tuple) or field.default is None
    config.write_text(f'{name} = "{value}"\n' if text and name != "threads" else f"{name} = {value}\n")
    assert getattr(Settings.load(["--config", str(config)]), name) == expected


def _another(name: str, default: object) -> str:
    special = {
        "dtype": "float32",
        "kernels": "off",
        "log_level": "debug",
        "log_format": "json",
        "max_queue_rows": "9999",
    }
    if name in special:
        return special[name]
    if isinstance(default, bool):
        return "true"
    if isinstance(default, int | float):
        return str(default + 1)
    return "7" if name == "threads" else "changed"


def test_lists_take_commas_repeats_and_toml_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ("a", "b", "c")
    assert Settings.load(["--metrics-tasks", "a,b", "--metrics-tasks", "c"]).metrics_tasks == wanted
    monkeypatch.setenv("PROMPTMUX_METRICS_TASKS", "a, b,c")
    assert Settings.load().metrics_tasks == wanted
    monkeypatch.delenv("PROMPTMUX_METRICS_TASKS")
    config = tmp_path / "c.toml"
    config.write_text('metrics_tasks = ["a", "b", "c"]\n')
    assert Settings.load(["--config", str(config)]).metrics_tasks == wanted


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("prot = 1", "prot: no such setting"),
        ("port = 99999", "port"),
        ('config = "x"', "cannot name another"),
        ("port =", "not TOML"),
        ("max_inputs = 10000", "max_queue_rows"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, text: str, word: str) -> None:
    config = tmp_path / "c.toml"
    config.write_text(text)
    with pytest.raises(SettingsError, match=word) as caught:
        Settings.load(["--config", str(config)])
    assert "\n" not in str(caught.value)


def test_bad_flags_and_variables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        Settings.load(["--prot", "1"])
    assert caught.value.code == 2
    assert "--prot" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="port"):
        Settings.load(["--port", "many"])
    monkeypatch.setenv("PROMPTMUX_PORT", "many")
    with pytest.raises(SettingsError, match="port"):
        Settings.load()
    with pytest.raises(SettingsError, match="cannot be read"):
        Settings.load(["--port", "1", "--config", "/does/not/exist.toml"])


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        Settings.load(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for name in Settings.model_fields:
        assert "--" + name.replace("_", "-") in shown


def test_the_effective_configuration_hides_secrets() -> None:
    settings = Settings(api_keys=("app:infer:" + "a" * 64,), store="redis://user:hunter2@host:1/0")
    shown = str(settings.effective())
    assert "a" * 64 not in shown
    assert "hunter2" not in shown
    assert "app:infer" in shown
    assert "host:1" in shown


def test_constructed_directly_it_looks_at_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMUX_PORT", "1234")
    assert Settings().port == 8000


def test_keys_come_from_the_setting_and_the_file(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# ours\nb:admin:" + "b" * 64 + "\n")
    settings = Settings(api_keys=("a:infer:" + "a" * 64,), api_keys_file=keys)
    assert len([key for key in settings.key_lines() if not key.startswith("#")]) == 2
    with pytest.raises(SettingsError, match="api_keys_file"):
        Settings(api_keys_file=tmp_path / "none").key_lines()


def test_a_store_on_a_local_disk_needs_no_second_place_there() -> None:
    assert Settings().cache_folder() is None
    assert Settings(store="/some/folder").cache_folder() is None
    assert Settings(store="redis://host/0").cache_folder() == Path("promptmux-cache")
    assert Settings(cache_dir=Path("here")).cache_folder() == Path("here")


@pytest.mark.parametrize(
    ("store", "shown"),
    [
        ("redis://:hunter2@h:1/0", "redis://:********@h:1/0"),
        ("redis://ann:hunter2@h", "redis://ann:********@h"),
        ("redis://h/1?prefix=a:", "redis://h/1?prefix=a:"),
        (
            "redis+sentinel://ann:hunter2@h1:1,h2:2/s?sentinel_password=hunter2&prefix=a:",
            "redis+sentinel://ann:********@h1:1,h2:2/s?sentinel_password=********&prefix=a:",
        ),
        ("file:///a/b", "file:///a/b"),
    ],
)
def test_the_store_is_shown_without_its_passwords(store: str, shown: str) -> None:
    assert Settings(store=store).effective()["store"] == shown
