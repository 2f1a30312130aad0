"""Providers as rows: reading them for gateways and people, changing them through the API, and by seeding.

`rows`      the SQL of rows and keys; every change takes the seed lock, writes a revision and notifies
`read`      the full set for gateways, with keys in clear
`views`     a provider as the API shows it: no secret in it
`requests`  what the API may be asked for, checked field by field (pure)
`changes`   create, change, delete: with audit entries
`trial`     calling a provider with each of its keys

Rules
- Changes happen one after the other, under the exclusive seed lock: a revision that is seen implies all before it.
- Secrets are sealed as they are written and opened only where a gateway reads them, or to compare a new key with those
  that are there.
- A row that cannot be read is shown and sent as such, with its reason; it never hides the others.
"""

from .changes import create_provider, delete_provider, update_provider
from .read import current_revision, read_all
from .rows import CHANNEL
from .views import ProviderSummary, ProviderView, get_provider, list_providers

__all__ = [
    "CHANNEL",
    "ProviderSummary",
    "ProviderView",
    "create_provider",
    "current_revision",
    "delete_provider",
    "get_provider",
    "list_providers",
    "read_all",
    "update_provider",
]
