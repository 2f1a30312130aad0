"""Every setting, once.

`settings`  the table: name, kind, default, what it does; `installation_settings` and `call_settings` are its rows,
            `setting` what a row holds
`values`    how the text of a setting becomes its value
`loading`   flag > environment > file > default; every problem at once
`plan`      what each process gets (`core.settings`), made from the settings
`document`  docs/configuration.md, made from the table; `headers_document` likewise docs/headers.md
"""

from .loading import ConfigError, Loaded, load
from .setting import Command
from .settings import SETTINGS, Settings

__all__ = ["SETTINGS", "Command", "ConfigError", "Loaded", "Settings", "load"]
