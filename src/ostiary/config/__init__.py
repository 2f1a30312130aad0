"""Every setting, once.

`settings`  the table: name, kind, default, what it does
`values`    how the text of a setting becomes its value
`loading`   flag > environment > file > default; every problem at once
`plan`      what each process gets (`core.settings`), made from the settings
`document`  docs/configuration.md, made from the table
"""

from .loading import ConfigError, Loaded, load
from .settings import SETTINGS, Settings

__all__ = ["SETTINGS", "ConfigError", "Loaded", "Settings", "load"]
