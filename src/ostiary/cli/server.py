"""`ostiary server`: settings in, a plan out, the supervisor does the rest."""

from ostiary.config import Loaded
from ostiary.config.plan import server_plan

from ._app import new_app
from ._settings_flags import with_settings_flags

app = new_app()


def server(loaded: Loaded) -> int:
    """Start gateway, control plane and, unless --database-url names another, a PostgreSQL of its own.

    Runs until SIGTERM or Ctrl-C, then lets streams in flight finish; a second
    signal cuts them. Every option is also an environment variable and a key in
    `ostiary.toml`: docs/configuration.md.

    Examples:

      ostiary server --demo
      OSTIARY_OPENAI_KEY=sk-... ostiary server --listen 0.0.0.0:4000 --data-dir /srv/ostiary
      ostiary server --config /etc/ostiary/ostiary.toml
    """
    from ostiary.runtime.supervisor import run

    return run(server_plan(loaded))


app.command()(with_settings_flags(server))
