"""Table: every check of `nautilus doctor`, in the order in which a person should mend what they find."""

from starter.checks import files, record, server
from starter.checks.finding import Check

CHECKS: dict[str, Check] = {
    "declaration": files.declaration,
    "playbook": files.playbook,
    "secrets": files.secrets,
    "folder": files.folder,
    "disk": files.disk,
    "database": record.database,
    "schema": record.schema,
    "database clock": record.database_clock,
    "encryption": files.encryption,
    "tls": files.tls_files,
    "temporal": server.temporal,
    "codec keys": server.codec_keys,
    "namespace": server.namespace,
    "search attributes": server.search_attributes,
    "server clock": server.server_clock,
    "workers": server.workers,
    "schedules": server.schedules,
    "paused": server.paused,
    "runs": server.runs,
    "budgets": record.budgets,
    "snapshot": record.snapshot,
    "cycles": server.cycles,
    "event bus": server.event_bus,
    "deliveries": record.deliveries,
    "dead letters": record.dead_letters,
    "ledger": record.ledger,
    "signed acts": record.signed_acts,
    "parameters": record.parameters,
    "freezes": record.freezes,
    "key files": files.key_files,
    "registered keys": files.registered_keys,
    "door": files.door,
}
