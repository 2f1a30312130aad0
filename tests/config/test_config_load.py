"""Flag > environment > file > default; what is wrong is reported at once and without secrets."""

import base64
import os
import traceback
from pathlib import Path

import pytest

from ostiary.config import SETTINGS, ConfigError, load
from ostiary.config.loading import PLANNED, provider_variables
from ostiary.config.settings import Settings, default_data_dir, flag, variable
from ostiary.core.settings import ControlSettings, GatewaySettings

KEY = base64.b64encode(b"k" * 32).decode()


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings file but that of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ostiary.config.loading.SYSTEM_FILE", tmp_path / "etc" / "ostiary.toml")


def problems(flags: dict[str, object] | None = None, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load(flags or {}, environ or {})
    return list(raised.value.problems)


def test_flag_goes_before_environment_before_file_before_default(tmp_path: Path) -> None:
    (tmp_path / "ostiary.toml").write_text('workers = 5\nmax_retries = 3\nidle_timeout = "7m"\n')
    loaded = load({"workers": "7"}, {"OSTIARY_WORKERS": "6", "OSTIARY_MAX_RETRIES": "2"})
    assert loaded.settings.workers == 7
    assert loaded.settings.max_retries == 2
    assert loaded.settings.idle_timeout == 420
    assert loaded.settings.head_timeout == 600
    assert loaded.origins == {
        "workers": "--workers",
        "max_retries": "OSTIARY_MAX_RETRIES",
        "idle_timeout": "idle_timeout in ostiary.toml",
    }


def test_every_wrong_setting_is_reported_at_once_by_the_name_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "ostiary.toml").write_text("workers = 0\nworkesr = 2\n")
    found = problems({"listen": "nowhere"}, {"OSTIARY_ALLOW_BYOK": "maybe", "OSTIARY_TLS_CERT_FILE": "/none.pem"})
    assert [line.split(" must ")[0].split(" needs ")[0] for line in found] == [
        "workesr in ostiary.toml is not a setting; did you mean workers?",
        "--listen",
        "OSTIARY_TLS_CERT_FILE",
        "workers in ostiary.toml",
        "OSTIARY_ALLOW_BYOK",
        "OSTIARY_TLS_CERT_FILE",
    ]
    assert "must be true or false; it is 'maybe'" in found[4]
    assert "a whole number from 1 to 256; it is 0" in found[3]


def test_no_secret_stands_in_a_problem_or_its_traceback() -> None:
    secrets = {
        "OSTIARY_DATABASE_URL": "mysql://user:hunter2@host/db",
        "OSTIARY_ENCRYPTION_KEYS": "hunter3-not-base64",
        "OSTIARY_BOOTSTRAP_TOKEN": "hunter4",
        "HTTPS_PROXY": "socks://user:hunter5@proxy",
        "OSTIARY_OTEL_ENDPOINT": "http://user:hunter6@collector:4318",
    }
    try:
        load({}, secrets)
    except ConfigError as error:
        text = "".join(traceback.format_exception(error)) + repr(error.__dict__)
        assert len(error.problems) == 5
    assert "hunter" not in text


def test_no_secret_stands_in_the_repr_of_the_settings() -> None:
    environ = {
        "OSTIARY_DATABASE_URL": "postgresql://user:hunter2@host/db",
        "OSTIARY_ENCRYPTION_KEYS": KEY,
        "OSTIARY_BOOTSTRAP_TOKEN": "hunter2" * 6,
        "HTTPS_PROXY": "http://user:hunter2@proxy",
        "OSTIARY_OPENAI_KEY": "sk-hunter2",
    }
    shown = repr(load({}, environ))
    assert "hunter2" not in shown
    assert KEY not in shown


def test_an_empty_variable_is_an_unset_one() -> None:
    assert load({}, {"OSTIARY_WORKERS": "", "OSTIARY_CA_FILE": ""}).origins == {}


def test_unknown_variables_are_warned_about_with_a_suggestion() -> None:
    loaded = load({}, {"OSTIARY_DRIAN_TIMEOUT": "1s", "OSTIARY_PORT_4000_TCP": "tcp://10.0.0.1:4000", "OTHER": "1"})
    assert loaded.warnings == (
        "OSTIARY_DRIAN_TIMEOUT is not a setting of ours and has no effect; did you mean OSTIARY_DRAIN_TIMEOUT?",
        "OSTIARY_PORT_4000_TCP is not a setting of ours and has no effect",
    )


def test_a_suggestion_goes_by_what_stands_behind_the_prefix() -> None:
    variables = ("CODER_AI_GATEWAY_ENABLED", "OSTIARY_FOO", "CODER_AI_GATEWAY_RETENTOIN", "CODER_AIBRIDGE_WORKERS")
    said = [warning.partition(" and has no effect")[2] for warning in load({}, dict.fromkeys(variables, "1")).warnings]
    assert said == ["; did you mean OSTIARY_WORKERS?", "", "; did you mean CODER_AI_GATEWAY_RETENTION?", ""]


def test_planned_settings_are_said_to_have_no_effect(tmp_path: Path) -> None:
    assert not PLANNED & set(SETTINGS)
    loaded = load({}, {"CODER_AI_GATEWAY_PUBLIC_URL": "http://o", "OSTIARY_PUBLIC_URL": "http://o"})
    assert [line.partition(" ")[2] for line in loaded.warnings] == ["is not supported yet and has no effect"] * 2
    (tmp_path / "ostiary.toml").write_text('public_url = "http://o"\n')
    assert problems() == ["public_url in ostiary.toml is not supported yet; remove it"]


def test_records_are_kept_for_sixty_days_for_as_long_as_was_said_or_for_ever(tmp_path: Path) -> None:
    assert load({}, {}).settings.retention == 60 * 86400
    assert load({}, {"CODER_AI_GATEWAY_RETENTION": "1440h0m0s"}).settings.retention == 60 * 86400
    for none in ("0", "0s", "0d"):
        assert load({"retention": none}, {}).settings.retention == 0
    (tmp_path / "ostiary.toml").write_text("retention = 0\n")
    assert load({}, {}).settings.retention == 0
    for wrong in ("retention = false", "retention = 60", 'retention = "12h"', 'retention = "60"', 'retention = ""'):
        (tmp_path / "ostiary.toml").write_text(wrong + "\n")
        assert [one.partition(" must be ")[2].partition(";")[0] for one in problems()] == [
            "0, or a duration from 1d to 3650d, e.g. 3650d"
        ], wrong


def test_migration_names_are_read() -> None:
    loaded = load({}, {"CODER_AIBRIDGE_ALLOW_BYOK": "false", "CODER_AI_GATEWAY_DISABLE_CONTENT_RECORDING": "true"})
    assert loaded.settings.allow_byok is False
    assert loaded.settings.record_content == "none"
    assert loaded.origins["record_content"] == "CODER_AI_GATEWAY_DISABLE_CONTENT_RECORDING"


def test_two_names_that_disagree_are_an_error_and_two_that_agree_are_not() -> None:
    assert load({}, {"OSTIARY_ALLOW_BYOK": "off", "CODER_AIBRIDGE_ALLOW_BYOK": "false"}).settings.allow_byok is False
    assert problems(environ={"OSTIARY_ALLOW_BYOK": "off", "CODER_AIBRIDGE_ALLOW_BYOK": "true"}) == [
        "OSTIARY_ALLOW_BYOK and CODER_AIBRIDGE_ALLOW_BYOK say different things; keep one of them"
    ]


def test_the_usual_proxy_variables_are_read_after_ours() -> None:
    environ = {"HTTPS_PROXY": "http://a:1", "NO_PROXY": "x", "OSTIARY_HTTPS_PROXY": "http://b:2"}
    settings = load({}, environ).settings
    assert settings.https_proxy.reveal() == "http://b:2"
    assert settings.no_proxy == "x"


def test_provider_variables_are_collected_whole_and_as_secrets() -> None:
    environ = {
        "OSTIARY_OPENAI_KEY": "a",
        "OSTIARY_PROVIDER_0_TYPE": "openai",
        "CODER_AIBRIDGE_PROVIDER_3_KEYZ": "b",
        "CODER_AI_GATEWAY_BEDROCK_REGION": "eu",
        "OSTIARY_WORKERS": "1",
        "OPENAI_API_KEY": "c",
    }
    assert sorted(provider_variables(environ)) == [
        "CODER_AIBRIDGE_PROVIDER_3_KEYZ",
        "CODER_AI_GATEWAY_BEDROCK_REGION",
        "OSTIARY_OPENAI_KEY",
        "OSTIARY_PROVIDER_0_TYPE",
    ]
    assert "a" not in repr(list(provider_variables({"OSTIARY_OPENAI_KEY": "a"}).values())).replace("Secret", "")


def test_a_wrong_provider_variable_is_reported_with_the_rest() -> None:
    found = problems(environ={"OSTIARY_PROVIDER_0_TPYE": "openai", "OSTIARY_WORKERS": "x"})
    assert found[0].startswith("OSTIARY_WORKERS must be")
    assert found[1].startswith("OSTIARY_PROVIDER_0_TPYE is unknown (did you mean OSTIARY_PROVIDER_0_TYPE?)")


def test_warnings_about_providers_are_kept_apart() -> None:
    loaded = load({}, {"OSTIARY_OPENAI_BASE_URL": "https://x.example/v1"})
    assert loaded.warnings == ()
    assert "OSTIARY_OPENAI_BASE_URL has no effect without OSTIARY_OPENAI_KEY" in loaded.provider_warnings[0]


def test_an_external_database_needs_encryption_keys() -> None:
    environ = {"OSTIARY_DATABASE_URL": "postgresql://h/d"}
    (found,) = problems(environ=environ)
    assert found.startswith("OSTIARY_DATABASE_URL needs OSTIARY_ENCRYPTION_KEYS beside it")
    load({}, environ | {"OSTIARY_ENCRYPTION_KEYS": KEY})


def test_certificate_and_key_must_belong_together(tmp_path: Path) -> None:
    import trustme
    from cryptography.hazmat.primitives import serialization

    authority = trustme.CA()
    one, two = authority.issue_cert("localhost"), authority.issue_cert("localhost")
    for number, cert in enumerate((one, two)):
        cert.private_key_pem.write_to_path(str(tmp_path / f"{number}.key"))
        cert.cert_chain_pems[0].write_to_path(str(tmp_path / f"{number}.pem"))
    load({"tls_cert_file": str(tmp_path / "0.pem"), "tls_key_file": str(tmp_path / "0.key")}, {})
    (found,) = problems({"tls_cert_file": str(tmp_path / "0.pem"), "tls_key_file": str(tmp_path / "1.key")})
    assert "key values mismatch" in found
    # the two are easily taken for each other
    (found,) = problems({"tls_cert_file": str(tmp_path / "0.key"), "tls_key_file": str(tmp_path / "0.pem")})
    assert found.endswith("the one or the other is not in its file")
    locked = serialization.load_pem_private_key(one.private_key_pem.bytes(), None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"passphrase"),
    )
    (tmp_path / "locked.key").write_bytes(locked)
    (found,) = problems({"tls_cert_file": str(tmp_path / "0.pem"), "tls_key_file": str(tmp_path / "locked.key")})
    assert found.endswith("the key needs a passphrase")
    (found,) = problems({"tls_cert_file": str(tmp_path / "0.pem")})
    assert found == "--tls-cert-file needs tls_key_file beside it (--tls-key-file or OSTIARY_TLS_KEY_FILE)"


def test_authorities_are_read_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate\n")
    (found,) = problems(environ={"OSTIARY_CA_FILE": str(tmp_path / "ca.pem")})
    assert found.startswith("OSTIARY_CA_FILE must be a file of PEM certificates")


def test_an_empty_data_directory_is_not_the_working_directory() -> None:
    (found,) = problems({"data_dir": ""})
    assert found.startswith("--data-dir must be a directory")


def test_a_named_file_must_exist_and_be_toml(tmp_path: Path) -> None:
    assert problems(environ={"OSTIARY_CONFIG": "/none.toml"})[0].startswith("OSTIARY_CONFIG must be a file")
    broken = tmp_path / "broken.toml"
    broken.write_text('database_url = "postgresql://hunter2\n')
    with pytest.raises(ConfigError) as raised:
        load({}, {}, file=broken)
    assert "is not TOML" in str(raised.value)
    assert "line 1" in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_a_file_with_a_secret_that_others_can_read_is_warned_about(tmp_path: Path) -> None:
    file = tmp_path / "ostiary.toml"
    file.write_text(f'bootstrap_token = "{"x" * 40}"\n')
    file.chmod(0o644)
    assert "chmod 600" in load({}, {}).warnings[0]
    file.chmod(0o600)
    assert load({}, {}).warnings == ()


def test_the_data_directory_follows_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_data_dir({"XDG_DATA_HOME": "/data"}) == Path("/data/ostiary")
    assert default_data_dir({"XDG_DATA_HOME": "relative"}) == Path("~/.local/share/ostiary").expanduser()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_data_dir({}) == Path("/var/lib/ostiary")


@pytest.mark.parametrize("name", SETTINGS)
def test_every_default_is_a_value_its_own_kind_takes_back(name: str) -> None:
    kind = SETTINGS[name].kind
    value = getattr(load({}, {}).settings, name)
    shown = kind.show(value)
    if shown and not kind.secret:
        assert kind.parse(shown) == value


@pytest.mark.parametrize("name", SETTINGS)
def test_names_follow_from_the_field(name: str) -> None:
    assert variable(name) == f"OSTIARY_{name.upper()}"
    short = {"control_url": "--url", "gateway_key": "--key", "gateway_key_file": "--key-file"}
    assert flag(name) == short.get(name, f"--{name.replace('_', '-')}")


@pytest.mark.parametrize("struct", [GatewaySettings, ControlSettings])
def test_defaults_agree_with_those_of_the_processes(struct: type) -> None:
    defaults = dict(
        zip(struct.__struct_fields__[-len(struct.__struct_defaults__) :], struct.__struct_defaults__, strict=True)
    )
    settings = load({}, {}).settings
    same = (set(defaults) & set(Settings.model_fields)) - {"ca_file", "https_proxy", "client_ca_file"}
    assert {name: getattr(settings, name) for name in same} == {name: defaults[name] for name in same}
