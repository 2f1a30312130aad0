"""Settings of `ostiary gateway start`: which it has, what it cannot do without, what a process gets."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
import trustme

from ostiary.config import ConfigError, load
from ostiary.config.plan import gateway_plan
from ostiary.config.settings import default_data_dir, settings_of
from ostiary.core.settings import TLSFiles
from ostiary.runtime.plan import Address, ServerPlan
from tests.config.other_values import OTHER

URL = "https://ostiary.example"
KEY = "k" * 43
NEEDED = {"control_url": URL, "gateway_key": KEY}


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    authority = trustme.CA()
    certificate = authority.issue_cert("gateway.example")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    (tmp_path / "gateway-key").write_text(f"  {KEY}\n")
    return {name: str(tmp_path / name) for name in ("ca.pem", "key.pem", "cert.pem", "gateway-key")}


def plan(flags: Mapping[str, object] = NEEDED, **variables: str) -> ServerPlan:
    return gateway_plan(load(flags, variables, command="gateway"))


def problems(flags: Mapping[str, object], **variables: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(flags, variables, command="gateway")
    assert KEY not in str(caught.value)
    return caught.value.problems


def test_a_gateway_has_no_control_plane_and_listens_beside_it() -> None:
    made = plan()
    assert (made.control, made.fake) == (None, None)
    assert made.listen == Address("127.0.0.1", 4001)
    assert made.gateway.mode == "standalone"
    assert made.data_dir == str(default_data_dir({}, "gateway")) != str(default_data_dir({}))
    assert made.link.cache_dir == f"{made.data_dir}/link"
    assert (made.link.control_url, made.link.gateway_key.reveal()) == (URL, KEY)


def test_the_environment_gives_all_it_needs() -> None:
    made = plan({}, OSTIARY_CONTROL_URL=URL + "/", OSTIARY_GATEWAY_KEY=KEY, OSTIARY_LISTEN=":5000")
    assert (made.link.control_url, made.link.gateway_key.reveal()) == (URL, KEY)
    assert made.listen.port == 5000


def test_names_of_the_reference_are_read() -> None:
    made = plan({}, CODER_URL=URL, CODER_AI_GATEWAY_KEY=KEY, CODER_AI_GATEWAY_HTTP_ADDRESS="127.0.0.1:5001")
    assert (made.link.control_url, made.link.gateway_key.reveal(), made.listen.port) == (URL, KEY, 5001)


def test_those_names_mean_another_program_to_a_server() -> None:
    loaded = load({}, {"CODER_AI_GATEWAY_HTTP_ADDRESS": "127.0.0.1:5001", "CODER_URL": URL, "OSTIARY_GATEWAY_KEY": KEY})
    assert loaded.settings.listen.port == 4000
    assert loaded.warnings == ()


def test_a_key_file_is_read_without_the_white_space_around(files: dict[str, str]) -> None:
    made = plan({"control_url": URL, "gateway_key_file": files["gateway-key"]})
    assert made.link.gateway_key.reveal() == KEY


def test_what_is_missing_is_named_with_its_cure() -> None:
    url, key = problems({})
    assert url.startswith("--url (OSTIARY_CONTROL_URL) is needed")
    assert "OSTIARY_GATEWAY_KEY" in key
    assert "ostiary gateway keys create" in key


def test_a_key_in_two_places_is_an_error(files: dict[str, str]) -> None:
    (problem,) = problems(NEEDED | {"gateway_key_file": files["gateway-key"]})
    assert problem == "--key and --key-file are two places for one key; keep one of them"


@pytest.mark.parametrize("content", ["", "two words of something", "ü" * 43, "\0" * 43])
def test_a_key_file_without_a_key(content: str, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text(content)
    (problem,) = problems({"control_url": URL, "gateway_key_file": str(tmp_path / "wrong")})
    assert problem.startswith("--key-file must be a file with a gateway key")


@pytest.mark.parametrize(
    "url", ["ostiary.example", "ftp://h", "https://h/path", "https://", "https://h:x", "http://u@h"]
)
def test_what_is_no_address_of_a_server(url: str) -> None:
    (problem,) = problems(NEEDED | {"control_url": url})
    assert problem.startswith("--url must be the URL of an Ostiary server without a path")


def test_tls_towards_the_server(files: dict[str, str]) -> None:
    made = plan(
        NEEDED
        | {
            "control_ca_file": files["ca.pem"],
            "control_cert_file": files["cert.pem"],
            "control_key_file": files["key.pem"],
        }
    )
    assert made.link.control_ca_file == files["ca.pem"]
    assert made.link.control_tls == TLSFiles(files["cert.pem"], files["key.pem"])
    (problem,) = problems(NEEDED | {"control_cert_file": files["cert.pem"]})
    assert "control_key_file" in problem
    (problem,) = problems(NEEDED | {"control_ca_file": files["key.pem"]})
    assert "PEM certificates" in problem


def test_settings_of_the_other_command_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "ostiary.toml").write_text('on_drift = "warn"\nworkers = 2\ncontrol_url = "https://from.file"\n')
    loaded = load({"gateway_key": KEY}, {"OSTIARY_DEMO": "nonsense"}, command="gateway")
    assert (loaded.settings.workers, loaded.settings.control_url) == (2, "https://from.file")
    assert loaded.settings.on_drift == "fail"
    assert load({}, {}).settings.control_url == ""


def test_provider_variables_are_said_to_have_no_effect() -> None:
    loaded = load(NEEDED, {"OSTIARY_PROVIDER_0_NONSENSE": "x"}, command="gateway")
    (warning,) = loaded.warnings
    assert "no effect on a gateway" in warning
    assert not loaded.provider_environment


SHOWN_ELSEWHERE = {"control_url", "gateway_key", "gateway_key_file"}


@pytest.mark.parametrize("name", sorted(set(settings_of("gateway")) - SHOWN_ELSEWHERE))
def test_every_setting_changes_what_a_gateway_gets(name: str, files: dict[str, str]) -> None:
    given = {name: OTHER.get(name, "17s")}
    if name.startswith(("tls_", "control_")) and name != "control_ca_file":
        which = name.partition("_")[0]
        given = {f"{which}_cert_file": files["cert.pem"], f"{which}_key_file": files["key.pem"]}
    if name in ("ca_file", "control_ca_file"):
        given = {name: files["ca.pem"]}
    if name.startswith("structured_logging"):  # the one without the other changes nothing here
        given = {"structured_logging": "true", "structured_logging_source": "gateway"}
    assert plan(NEEDED | given) != plan()


def test_no_secret_shows_in_a_plan() -> None:
    assert KEY not in repr(plan())
    assert KEY not in str(msgspec.structs.asdict(plan().link))
