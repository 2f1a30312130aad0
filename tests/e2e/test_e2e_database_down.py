"""The database is stopped: people go on working, and what they did is in the record once it is back."""

import base64
import os
import re
import signal

from ostiary.runtime.postgres import EmbeddedPostgres
from tests.e2e.conftest import CHAT, DATA_PLANE, MESSAGES, RESPONSES, Person
from tests.support.fake_provider import FakeProvider
from tests.support.raw_http import ask
from tests.support.server import Server, StartServer, eventually, open_directory

KEY = base64.b64encode(bytes(range(32))).decode()


def control_up(server: Server) -> list[str]:
    page = server.owner.get(server.metrics_url).raise_for_status().text
    return re.findall("^ostiary_control_up (.+)$", page, re.MULTILINE)


def test_traffic_goes_on_without_the_database_and_records_arrive_once_it_is_back(
    start_server: StartServer, own_fake: FakeProvider
) -> None:
    with open_directory() as directory:
        postgres = EmbeddedPostgres(directory, durable=False)
        try:
            url = postgres.start().reveal()
            server = start_server(own_fake, "--workers", "1", OSTIARY_DATABASE_URL=url, OSTIARY_ENCRYPTION_KEYS=KEY)
            person = Person(server, "ann", server.new_token("ann"))
            known = person.call(CHAT.path(), CHAT.body("before")).interception_id
            assert server.interception(known)["outcome"] == "completed"

            postgres.stop()
            during: dict[str, str] = {}
            for api in (CHAT, RESPONSES, MESSAGES):
                for stream in (False, True):
                    prompt = f"during {api.route} {stream}"
                    answer = person.call(api.path(), api.body(prompt, stream=stream))
                    assert (answer.status, answer.complete) == (200, True)
                    during[answer.interception_id] = prompt
            list_of_records = ask(server.port, "GET", f"{DATA_PLANE}/interceptions", person.bearer)
            assert list_of_records.status == 503
            assert list_of_records.json()["message"]
            assert ask(server.port, "GET", "/readyz").status == 200
            eventually(lambda: server.metric("ostiary_link_records_pending") == 2 * len(during))
            assert server.metric("ostiary_link_records_rejected_total") == 0

            # one that starts anew meanwhile waits for the database, and that shows
            eventually(lambda: control_up(server) == ["1.0"])
            (control,) = server.children("control")
            os.kill(control, signal.SIGKILL)
            eventually(lambda: control_up(server) == ["0.0"] and server.children("control") != [control])

            postgres.start()
            for interception_id, prompt in during.items():
                record = server.interception(interception_id)
                assert (record["outcome"], record["initiator"]["username"]) == ("completed", "ann")
                assert [told["prompt"] for told in record["user_prompts"]] == [prompt]
                assert len(record["token_usages"]) == 1
            assert len(server.interceptions()) == len(during) + 1
            assert own_fake.requests()["count"] == len(during) + 1
            eventually(lambda: server.metric("ostiary_link_records_pending") == 0)
            eventually(lambda: control_up(server) == ["1.0"])
            assert server.stop() == 0
        finally:
            postgres.stop()
