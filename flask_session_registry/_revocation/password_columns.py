"""The columns of the user model that make up a user's credential."""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Sequence

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm

from .._user_model import key_of
from ..errors import ConfigurationError
from .fingerprint import StoredCredential, Values, fingerprint, is_passwordless

State = sa_orm.InstanceState[t.Any]


# -- the attributes ------------------------------------------------------------------------------


def password_attributes(
    user_model: type[t.Any], names: tuple[str, ...], *, search: bool
) -> tuple[str, ...]:
    """Return the mapped attributes of the user model that hold the password.

    :param names: the attributes; with ``search``, candidates, exactly one of which must be mapped.
    :raises ConfigurationError: the model doesn't map them; or with ``search``, it or a class that
        inherits from it maps several.
    """
    mapper = sa.inspect(user_model)
    if search:
        names = _search(mapper, names) or names
    else:
        names = tuple(dict.fromkeys(_resolve_synonym(mapper, name) for name in names))
    mapped = _column_attributes(mapper)
    missing = [name for name in names if name not in mapped]
    if missing:
        raise _not_mapped(mapper, names, missing)
    return names


def _search(mapper: sa_orm.Mapper[t.Any], candidates: tuple[str, ...]) -> tuple[str, ...]:
    """Return the one candidate that the model, or a class that inherits from it, maps; if any."""
    family = list(mapper.self_and_descendants)
    mapped = set[str]().union(*map(_column_attributes, family))
    resolved = (_resolve_synonym(each, name) for name in candidates for each in family)
    found = tuple(dict.fromkeys(name for name in resolved if name in mapped))
    if len(found) > 1:
        names = " and ".join(f"'{name}'" for name in found)
        raise ConfigurationError(
            f"The user model '{mapper.class_.__name__}' maps {names}, and each might hold the"
            " password hash. Set 'SESSION_REGISTRY_PASSWORD_ATTRIBUTE' to the right one, or to"
            " all of them if more than one does."
        )
    return found


def _not_mapped(
    mapper: sa_orm.Mapper[t.Any], names: Sequence[str], missing: Sequence[str]
) -> ConfigurationError:
    columns = ", ".join(f"'{name}'" for name in missing)
    problem = f"The user model '{mapper.class_.__name__}' maps no column {columns}"
    for each in mapper.self_and_descendants:
        if _column_attributes(each).issuperset(names):
            name = each.class_.__name__
            return ConfigurationError(
                f"{problem}, but '{name}', which inherits from it, does. If its instances sign in,"
                f" pass 'user_model={name}'."
            )
    return ConfigurationError(
        f"{problem}. Set 'SESSION_REGISTRY_PASSWORD_ATTRIBUTE' to the attribute that holds the"
        " password hash, or to None if users have no password."
    )


def _resolve_synonym(mapper: sa_orm.Mapper[t.Any], name: str) -> str:
    """Return the name of the attribute behind a synonym; any other name unchanged."""
    while mapper.has_property(name):
        found: object = mapper.get_property(name)
        if not isinstance(found, sa_orm.SynonymProperty):
            break
        name = found.name
    return name


def _column_attributes(mapper: sa_orm.Mapper[t.Any]) -> set[str]:
    """Return the names of the attributes that hold a column, without computed expressions."""
    # Not 'column_attrs', which would configure mappers that are not all imported yet.
    return {name for name, column in mapper.columns.items() if isinstance(column, sa.Column)}


def _identifying_attributes(mapper: sa_orm.Mapper[t.Any], names: Sequence[str]) -> tuple[str, ...]:
    """Return the attributes, except the key and the password, whose values no two users share."""
    return tuple(
        name
        for name in sorted(_column_attributes(mapper))
        if name not in names and _is_unique(mapper.columns[name])
    )


def _is_unique(column: sa.Column[t.Any]) -> bool:
    """Return whether a column outside the primary key has a unique constraint of its own."""
    if column.primary_key or column.unique:
        return not column.primary_key
    # A user model may also be mapped to a query, which has neither.
    constraints: t.Iterable[t.Any] = getattr(column.table, "constraints", ())
    indexes: t.Iterable[t.Any] = getattr(column.table, "indexes", ())
    unique = [
        *(each for each in constraints if isinstance(each, sa.UniqueConstraint)),
        *(index for index in indexes if index.unique),
    ]
    return any([*each.columns] == [column] for each in unique)


# -- the values ----------------------------------------------------------------------------------


def is_stored_verbatim(column: sa.Column[t.Any], dialect: sa.Dialect) -> bool:
    """Return whether a column stores the value of its attribute unchanged."""
    kind = column.type
    return (
        isinstance(kind, (sa.String, sa.LargeBinary))
        and type(kind).__module__.startswith("sqlalchemy.")
        and not isinstance(kind, sa.Enum)
        # PostgreSQL pads CHAR. Ask for the type on this dialect: it may be a variant.
        and "CHAR" not in kind.compile(dialect=dialect).replace("VARCHAR", "")
        and column.server_onupdate is None
    )


def _has_custom_type(column: sa.Column[t.Any]) -> bool:
    """Return whether a type of the app's own converts between the database and instances."""
    return isinstance(column.type, sa.TypeDecorator)


def _raw(attribute: t.Any, column: sa.Column[t.Any]) -> t.Any:
    """Return the expression that selects an attribute as the database stores it."""
    if not _has_custom_type(column):
        return attribute
    # Under a name of its own, or it would be taken for the column of the user itself.
    return sa.type_coerce(attribute, sa.types.NullType()).label(None)


def has_expression(values: Values) -> bool:
    """Return whether an attribute was set to a SQL expression, whose value isn't known yet."""
    return any(isinstance(value, sa.ClauseElement) for value in values)


def identity_of(state: State) -> t.Any:
    """Return the primary key by which a flush finds the row of an instance."""
    key: t.Any = state.key
    return key[1][0]


class PasswordColumns:
    """The password columns of a user model, with how to read a credential from them.

    Users without a password would all have the same fingerprint. So theirs covers the columns with
    a unique constraint as well: a new user who is given the key of a deleted one doesn't share it.
    """

    def __init__(self, user_model: type[t.Any], names: tuple[str, ...]) -> None:
        self.user_model = user_model
        #: The password attributes.
        self.names = names
        #: The model and the attributes: what the apps of one process may have in common.
        self.scope = user_model, names
        self.key = key_of(user_model)
        mapper = sa.inspect(user_model)
        self._passwords = [mapper.columns[name] for name in names]
        #: The attributes that identify a user without a password, if there can be any.
        self.identifying: tuple[str, ...] = ()
        if names and all(column.nullable for column in self._passwords):
            self.identifying = _identifying_attributes(mapper, names)
        watched = [*names, *self.identifying]
        #: What the fingerprint is made from: raw, whatever a type of the app's own makes of it.
        self.columns = [_raw(getattr(user_model, name), mapper.columns[name]) for name in watched]
        self.tables = {mapper.columns[name].table for name in watched}
        #: The columns that :meth:`read` needs of a row.
        self.selected = [*self.columns]
        if any(map(_has_custom_type, self._passwords)):
            self.selected += [getattr(user_model, name) for name in names]
        self._by_key = (
            sa.select(*self.selected).where(self.key == sa.bindparam("key")) if watched else None
        )

    def fingerprint(self, values: Values) -> str | None:
        """Return the fingerprint of what a row holds in :attr:`columns`."""
        if self.identifying and not is_passwordless(values[: len(self.names)]):
            values = values[: len(self.names)]
        return fingerprint(values)

    def read(self, row: Sequence[t.Any]) -> StoredCredential:
        """Return the credential in what a row holds in :attr:`selected`."""
        values, count = tuple(row), len(self.columns)
        raw = values[:count]
        attributes = values[count:] or raw[: len(self.names)]
        return StoredCredential(self.fingerprint(raw), attributes, raw)

    def current(
        self, execute: Callable[..., t.Any], key: t.Any, *, lock: bool = False
    ) -> StoredCredential | None:
        """Return the credential that is stored now; ``None`` if there is no such user."""
        if self._by_key is None:
            return self.read(())
        statement = self._by_key
        if lock:
            tables = sa.inspect(self.user_model).tables
            statement = statement.with_for_update(key_share=True, of=tables)
        row = execute(statement, {"key": key}).first()
        return None if row is None else self.read(row)

    def predict(self, attributes: Values | None, dialect: sa.Dialect) -> StoredCredential | None:
        """Return the credential that the database stores for password attributes.

        ``None`` if only the database can tell.
        """
        if (
            attributes is None
            or has_expression(attributes)
            or not self.are_stored_verbatim(dialect)
            or (self.identifying and is_passwordless(attributes))
        ):
            return None
        return StoredCredential(fingerprint(attributes), attributes, attributes)

    def are_stored_verbatim(self, dialect: sa.Dialect) -> bool:
        """Return whether the database stores the password attributes unchanged."""
        return all(is_stored_verbatim(column, dialect) for column in self._passwords)

    def attributes_of(self, state: State) -> Values | None:
        """Return the password attributes of an instance; ``None`` if they aren't loaded."""
        try:
            return tuple([state.dict[name] for name in self.names])
        except KeyError:
            return None

    def transient_password(self, user: object) -> Values | None:
        """Return the password attributes of a transient instance; ``None`` if it has no password.

        ``None`` also if the instance isn't transient.
        """
        state = sa.inspect(user, raiseerr=True)
        attributes = self.attributes_of(state) if state.transient else None
        return None if attributes is None or is_passwordless(attributes) else attributes
