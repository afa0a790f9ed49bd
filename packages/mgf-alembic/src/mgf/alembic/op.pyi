# What `alembic.op` has, and the operations that this package adds. Held equal to those by a test.
from collections.abc import Iterable
from contextlib import AbstractContextManager

from alembic.op import *  # noqa: F403 - whatever it has, by its own stub

from mgf.sqlalchemy import rls

def alter_policy(policy: rls.Policy, *, existing: rls.Policy) -> None: ...
def alter_row_security(
    table_name: str,
    *,
    schema: str | None = None,
    enabled: bool,
    forced: bool,
    existing_enabled: bool,
    existing_forced: bool,
) -> None: ...
def alter_view_security(view_name: str, *, schema: str | None = None, invoker: bool) -> None: ...
def create_invoker_view(
    view_name: str,
    select: str,
    *,
    schema: str | None = None,
    grants: Iterable[rls.Grant] = (),
) -> None: ...
def create_policy(policy: rls.Policy) -> None: ...
def drop_invoker_view(
    view_name: str,
    select: str,
    *,
    schema: str | None = None,
    grants: Iterable[rls.Grant] = (),
) -> None: ...
def drop_policy(policy: rls.Policy) -> None: ...
def grant_privileges(grant: rls.Grant) -> None: ...
def protect_table(protection: rls.TableProtection) -> None: ...
def revoke_privileges(grant: rls.Grant) -> None: ...
def rls_suspended(*tables: str, schema: str | None = None) -> AbstractContextManager[None]: ...
def unprotect_table(protection: rls.TableProtection) -> None: ...
