"""`ostiary vault`: the keys that encrypt provider keys at rest."""

from ._app import new_app
from .client import Client
from .output import AsJson, Column, ago, note, one_line, print_json, print_table, say

app = new_app("The keys that encrypt at rest, and their rotation.")

_PATH = "/api/v2/vault"


@app.command()
def status(as_json: AsJson = False) -> None:
    """Which keys there are by id, which one encrypts, and how much each does.

    Example: ostiary vault status
    """
    with Client.here() as client:
        keys = client.get(_PATH)
    if as_json:
        print_json(keys)
        return
    rows = [
        (
            key["key_id"],
            "encrypts" if key["sealing"] else "decrypts" if key["available"] else "MISSING",
            key["values"],
            ago(key["registered_at"]),
        )
        for key in keys
    ]
    print_table(("KEY", "DOES", Column("VALUES", right=True), "SINCE"), rows, "no keys")


@app.command()
def rotate(as_json: AsJson = False) -> int:
    """Encrypt every stored secret under the first key of OSTIARY_ENCRYPTION_KEYS.

    To change the key: put a new one before the old one in that variable,
    restart every control plane, rotate, and remove the old one.

    Example: ostiary vault rotate
    """
    with Client.here() as client:
        report = client.post(f"{_PATH}/rotate")
    if as_json:
        print_json(report)
    else:
        say(f"encrypted {report['reencrypted']} values under {report['key_id']}")
        for key_id in report["retired"]:
            say(f"key {key_id} encrypts nothing any more: it may leave OSTIARY_ENCRYPTION_KEYS")
        for place in report["unreadable"]:
            note(f"cannot be decrypted, left as it is: {one_line(place)}")
    return 1 if report["unreadable"] else 0
