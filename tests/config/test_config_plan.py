"""What the processes get: no setting is without effect, and no secret shows."""

from pathlib import Path

import pytest
import trustme

from ostiary.config import load
from ostiary.config.plan import server_plan
from ostiary.config.settings import settings_of
from ostiary.core.settings import TLSFiles
from ostiary.runtime.plan import Address, ServerPlan
from tests.config.other_values import OTHER, VAULT_KEY


def plan_with(**flags: str) -> ServerPlan:
    return server_plan(load(flags, {}))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    certificate = trustme.CA().issue_cert("localhost")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    return {name: str(tmp_path / f"{name}.pem") for name in ("key", "cert")}


@pytest.mark.parametrize("name", settings_of("server"))
def test_every_setting_changes_what_a_process_gets(name: str, files: dict[str, str]) -> None:
    usual: dict[str, str] = {"demo": "true"} if name == "fake_listen" else {}
    if name == "database_url":
        usual = {"encryption_keys": VAULT_KEY}
    if name == "database_listen_url":
        usual = {"encryption_keys": VAULT_KEY, "database_url": "postgresql://h/d"}
    if name == "structured_logging_source":
        usual = {"structured_logging": "true"}
    changed = usual | {name: OTHER.get(name, "17s")}
    tls = {"tls_cert_file": files["cert"], "tls_key_file": files["key"]}
    if name.startswith("tls_"):
        changed = tls
    if name == "client_ca_file":
        usual = tls
        changed = tls | {name: files["cert"]}
    if name == "ca_file":
        changed = {name: files["cert"]}
    if name == "fake_listen":
        changed = usual | {name: "127.0.0.1:9"}
    assert plan_with(**changed) != plan_with(**usual)


def test_the_plan_of_a_plain_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    plan = server_plan(load({"data_dir": "/data", "workers": "3"}, {"OSTIARY_OPENAI_KEY": "sk-x"}))
    assert (plan.listen, plan.workers, plan.data_dir, plan.fake) == (Address("127.0.0.1", 4000), 3, "/data", None)
    assert plan.metrics_listen == Address("127.0.0.1", 2112)
    assert plan.gateway.journal_dir == plan.link.journal_dir == "/data/journal"
    assert plan.control is not None
    assert plan.control.embedded_database
    assert {name: value.reveal() for name, value in plan.control.seed_environment.items()} == {
        "OSTIARY_OPENAI_KEY": "sk-x"
    }


def test_tls_reaches_the_listener(files: dict[str, str]) -> None:
    plan = plan_with(tls_cert_file=files["cert"], tls_key_file=files["key"])
    assert plan.gateway.tls == TLSFiles(files["cert"], files["key"])


def test_without_metrics_nobody_listens_for_those_who_want_them() -> None:
    assert plan_with(metrics_listen="off").metrics_listen is None


def test_no_secret_shows_in_a_plan() -> None:
    plan = plan_with(
        database_url="postgresql://u:hunter2@h/d", encryption_keys=VAULT_KEY, bootstrap_token="hunter2" * 6
    )
    assert "hunter2" not in repr(plan)
    assert VAULT_KEY not in repr(plan)
