"""What the attacks are made with, and what PostgreSQL's errors say of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from mgf.sqlalchemy.audit._probe._outcome import HELD, Outcome, leaked, not_proven
from mgf.sqlalchemy.audit._probe._seeding import CannotSeedError
from mgf.sqlalchemy.audit._probe._session import explain, failure, is_ungranted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgf.sqlalchemy.audit._probe._seeding import Seeder
    from mgf.sqlalchemy.audit._probe._session import Session
    from mgf.sqlalchemy.audit._probe._target import Target

# insufficient_privilege: what a policy raises, too.
REFUSED = "42501"
# undefined_object: a setting that was never set, asked for without missing_ok.
NO_SETTING = "42704"
DIVISION_BY_ZERO = "22012"
NOT_SUPPORTED = "0A000"
FOREIGN_KEY_VIOLATION = "23503"
# unique_violation, exclusion_violation: PostgreSQL asks policies before keys.
KEY_TAKEN = ("23505", "23P01")
NOT_NULL_VIOLATION = "23502"
# with_check_option_violation: of a view's own.
CHECK_OPTION = "44000"
# object_not_in_prerequisite_state: a view that takes no such command.
_NOT_UPDATABLE = "55000"


class Field:
    """What the attacks are made with.

    Args:
        session: to try in.
        seeder: which knows the rows.
        tenants: two that have rows.
        stranger: one that has none.
        has_own: the role is the application's, which has to reach a tenant's own rows for
            anything to be shown.
        never_set: what was seen while the setting had never been set in this session.
    """

    def __init__(
        self,
        session: Session,
        seeder: Seeder,
        tenants: tuple[str, str],
        stranger: str,
        *,
        has_own: bool = True,
    ) -> None:
        self.session = session
        self.seeder = seeder
        self.tenants = tenants
        self.stranger = stranger
        self.has_own = has_own
        self.never_set: dict[int, Outcome] = {}

    def of(self, session: Session) -> Field:
        """Return the same for a role that the application's can become."""
        return Field(session, self.seeder, self.tenants, self.stranger, has_own=False)

    @property
    def pairs(self) -> Iterator[tuple[str, str]]:
        """Each tenant, with the one that it attacks."""
        one, other = self.tenants
        yield from ((one, other), (other, one))

    def sees(self, target: Target, *tenants: str) -> bool:
        """Say whether rows of tenants are read."""
        where = target.rows_of(*tenants)
        return bool(
            self.session.scalar(f"SELECT EXISTS (SELECT FROM {target.sql} WHERE {where})")  # noqa: S608
        )

    def refusal(self, tenant: str | None, statement: str) -> DBAPIError | None:
        """Run a statement of the role, undo it, and return the error that it gave.

        Raises:
            CannotSeedError: an INSERT made no row, and gave no error either.
        """
        try:
            with self.session.trial(tenant):
                if self.session.run(statement).rowcount == 0 and statement.startswith("INSERT"):
                    raise CannotSeedError("an INSERT made no row: a trigger or rule saw to it")
        except DBAPIError as error:
            failure(error)
            return error
        return None


def is_closed(code: str) -> bool:
    """Say whether an error is what a policy gives that cannot make a tenant of the setting."""
    return code in (REFUSED, NO_SETTING) or code.startswith("22")


def verdict(error: DBAPIError | None, how: str) -> Outcome:
    """Return how a statement went that a policy has to refuse."""
    if error is None:
        return leaked(how)
    code = failure(error)
    if code == REFUSED:
        return HELD
    if code in KEY_TAKEN:
        return leaked(f"{how}: policies let it pass, and only a key that is taken refused this row")
    return not_proven(explain(error))


def is_impossible(error: DBAPIError) -> bool:
    """Say whether a view takes no such command, of nobody or not of the role."""
    code = failure(error)
    return code in (_NOT_UPDATABLE, NOT_SUPPORTED) or (code == REFUSED and is_ungranted(error))
