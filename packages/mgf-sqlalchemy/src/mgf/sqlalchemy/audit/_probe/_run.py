"""Put rows in, attack every relation, and tell how it went."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from mgf.common.exceptions import AppConfigError
from mgf.sqlalchemy.audit._labels import CONTROL, label_of_role
from mgf.sqlalchemy.audit._probe._attacks import ATTACKS, attack, look_unset
from mgf.sqlalchemy.audit._probe._control import NoControlError, make_control, missed
from mgf.sqlalchemy.audit._probe._field import Field
from mgf.sqlalchemy.audit._probe._outcome import HELD, NOT_APPLICABLE, Outcome, leaked, not_proven
from mgf.sqlalchemy.audit._probe._partitions import make_room
from mgf.sqlalchemy.audit._probe._roles import attack_as, roles_to_become
from mgf.sqlalchemy.audit._probe._seeding import Author, Seeder
from mgf.sqlalchemy.audit._probe._session import UNTOUCHED, Session, explain
from mgf.sqlalchemy.audit._probe._spills import Spills
from mgf.sqlalchemy.audit._probe._survey import named_tenants, survey, targets
from mgf.sqlalchemy.audit._probe._unprotected import attack_unprotected
from mgf.sqlalchemy.audit._probe._untold import doubt_held, untold
from mgf.sqlalchemy.audit._probe._witness import add_witnesses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Connection

    from mgf.sqlalchemy.audit._probe._target import Target
    from mgf.sqlalchemy.audit._snapshot import Relation
    from mgf.sqlalchemy.audit._subject import Expectation

    Progress = Callable[[int, int, str], None]
    Outcomes = dict[str, Outcome]

_CURRENT = text("SELECT current_setting(:setting, true)")


class Run:
    """One probe of a database.

    Args:
        connection: in a transaction that its owner rolls back.
        expectation: of the audit.
        donors: tenants whose rows may be copied.
        bound: what the setting held before anybody set it.

    Raises:
        AppConfigError: the login may not become the role.
    """

    def __init__(
        self,
        connection: Connection,
        expectation: Expectation,
        *,
        donors: Sequence[str],
        bound: str | None,
    ) -> None:
        subject = expectation.subject
        snapshot = subject.snapshot
        self._subject = subject
        self._snapshot = snapshot
        self._connection = connection
        self.tenants = (str(uuid4()), str(uuid4()))
        self.control = "not_proven"
        self.was_never_set = False
        self._bound = bound
        role, login = snapshot.role.rolname, snapshot.session_user
        session = Session(connection, role=role, login=login, setting=subject.setting)
        session.start()
        _check_role(session)
        self._open_table, self._no_control = _open_table(session)
        ground = survey(connection, expectation, role=role, open_table=self._open_table)
        self._ground = replace(ground, room=make_room(session, ground, self.tenants))
        self._seeder = Seeder(session, self._ground, donors)
        self._session = session
        self._field = Field(session, self._seeder, self.tenants, str(uuid4()))

    def outcomes(self, progress: Progress) -> dict[str, Outcomes]:
        """Put the rows in, attack, and return how it went by object and attack."""
        self._seed()
        found: dict[str, Outcomes] = {}
        everything = targets(self._ground, self._seeder, self.tenants)
        blind = self._blind(everything)
        concerned = [one for one in everything if one.relation is not self._open_table]
        doubts = untold(self._connection, self._ground)
        spills = Spills(self._connection, self._field)
        spilled = spills.read(self._field)
        roles = roles_to_become(self._connection, self._snapshot)
        total = len(concerned) + len(spilled) + len(roles)
        for done, target in enumerate(concerned):
            progress(done, total, target.relation.label)
            outcomes = doubt_held(self._attack(target), doubts.get(target.relation.oid, {}))
            found[target.relation.label] = _doubt(outcomes, blind)
        for done, label in enumerate(spilled, len(concerned)):
            progress(done, total, label)
            found[label] = {**dict.fromkeys(ATTACKS, NOT_APPLICABLE), "read": spilled[label]}
        for done, role in enumerate(roles, len(concerned) + len(spilled)):
            label = label_of_role(role)
            progress(done, total, label)
            found[label] = _doubt(attack_as(self._field, concerned, role, spills), blind)
        return found | dict(self._of_itself())

    def _seed(self) -> None:
        """Put in rows of both tenants, as whoever may."""
        role, login = self._session.role, self._session.login
        if login != role:
            self._seed_as(Author(login, is_bound=False))
        self._look_before_any_tenant()
        if login != role:
            self._seed_as(Author(login, is_bound=True))
        self._seed_as(Author(role, is_bound=True))
        add_witnesses(self._session, self._ground, self._seeder, self.tenants, self._field.stranger)

    def _seed_as(self, author: Author) -> None:
        self._seeder.write_as(author)
        for oid in self._ground.owned:
            for tenant in self.tenants:
                self._seeder.seed(oid, tenant)
            for tenant in named_tenants(self._ground, oid):
                self._seeder.seed(oid, tenant)

    def _look_before_any_tenant(self) -> None:
        """Read while the setting was never set, which once in a session it never is again."""
        setting = {"setting": self._session.setting}
        if self._connection.execute(_CURRENT, setting).scalar() is not None:
            return
        self.was_never_set = True
        for target in targets(self._ground, self._seeder, self.tenants):
            if target.may("SELECT") and (where := self._worth_a_look(target)):
                outcome = look_unset(self._field, target, where)
                self._field.never_set[target.relation.oid] = outcome

    def _worth_a_look(self, target: Target) -> str:
        """Return which rows nobody may see: those that were put in, or else any."""
        if known := target.rows_of(*self.tenants) if any(target.rows.values()) else "":
            return known
        declared = self._subject.expected.get(target.relation.oid, ())
        usual = self._subject.canonical.get(target.relation.oid, ())
        # What the metadata shares is there for everyone.
        shares = any(one.using not in usual for one in declared if one.using is not None)
        return "" if shares or target.is_view else "true"

    def _blind(self, everything: Sequence[Target]) -> Outcomes:
        """Return the attacks that do not find the open table, and note how the control went."""
        target = next((one for one in everything if one.relation is self._open_table), None)
        if target is None:
            return {}
        blind = missed(attack(self._field, target))
        self.control = "missed" if blind else "caught"
        return blind

    def _attack(self, target: Target) -> Outcomes:
        if not target.relation.privileges:
            return dict.fromkeys(ATTACKS, NOT_APPLICABLE)
        if target.relation.kind in "mf":
            return attack_unprotected(self._field, target)
        return attack(self._field, target)

    def _of_itself(self) -> Iterator[tuple[str, Outcomes]]:
        """Yield what is about no relation."""
        role, setting = self._session.role, self._session.setting
        defaults = [
            one.value for one in self._snapshot.settings if one.name.lower() == setting.lower()
        ]
        if any(defaults) or self._bound:
            how = f"{setting} has a value before any scope: who forgot one acts as that tenant"
            yield label_of_role(role), {"unscoped": leaked(how)}
        if self._no_control:
            yield CONTROL, {CONTROL: not_proven(self._no_control)}


def _check_role(session: Session) -> None:
    try:
        with session.trial(UNTOUCHED):
            pass
    except DBAPIError as error:
        raise AppConfigError(
            f"login {session.login!r} may not become {session.role!r} ({explain(error)}); connect "
            "as that role, or GRANT it to the login"
        ) from error


def _open_table(session: Session) -> tuple[Relation | None, str]:
    try:
        return make_control(session), ""
    except NoControlError as error:
        return None, str(error)


def _doubt(outcomes: Outcomes, blind: Outcomes) -> Outcomes:
    """Take nothing for held that the open table withstood, too."""
    return {
        name: not_proven(f"the attack did not succeed on an open table ({blind[name].reason})")
        if outcome == HELD and name in blind
        else outcome
        for name, outcome in outcomes.items()
    }
