"""A naming convention for metadata whose tables exist already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import CheckConstraint, MetaData
from sqlalchemy.schema import ColumnCollectionConstraint, conv

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeGuard

    from sqlalchemy import Constraint


def apply_naming_convention(metadata: MetaData, convention: Mapping[Any, Any]) -> None:
    """Put a convention on metadata, and name its constraints as if it had always been there.

    SQLAlchemy names a constraint when its table is made. One that got no name then takes it from
    a copy of its table, made under the convention. Indexes, which always have a name, keep it;
    so do checks, whose convention usually asks for a name to begin with.
    """
    metadata.naming_convention = convention
    scratch = MetaData(
        naming_convention={
            kind: name for kind, name in convention.items() if kind not in {"ck", CheckConstraint}
        }
    )
    for table in metadata.tables.values():
        copies = filter(_is_nameable, table.to_metadata(scratch).constraints)
        names = {_identity(copy): copy.name for copy in copies if isinstance(copy.name, conv)}
        for constraint in filter(_is_nameable, table.constraints):
            if constraint.name is None:
                constraint.name = names.get(_identity(constraint))


def _is_nameable(constraint: Constraint) -> TypeGuard[ColumnCollectionConstraint]:
    return isinstance(constraint, ColumnCollectionConstraint) and not isinstance(
        constraint, CheckConstraint
    )


def _identity(constraint: ColumnCollectionConstraint) -> tuple[type, tuple[str, ...]]:
    return type(constraint), tuple(constraint.columns.keys())
