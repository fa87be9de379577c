"""Open the storage of a sweep: its driver, its secrets, and connections that are lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, ProgrammingError

from cnnspec.diagnostics import CnnspecError, failure, one_line

HEARTBEAT = 20
"""Seconds between two heartbeats of a trial."""
GRACE = 90
"""Seconds without a heartbeat after which another process takes over a trial."""
PATIENCE = 300
"""Seconds that a process waits for a database server that does not respond."""
_OPENINGS = 5
"""Attempts to open a storage, whose tables several machines may create at the same time."""
_SECRET = ("password", "passwd", "pwd", "secret", "token")
"""Parts of the names of arguments whose values are never shown."""


@dataclass(frozen=True)
class Address:
    """The URL of a storage, which may contain a password."""

    url: str
    _parsed: URL | None = field(init=False)

    def __post_init__(self) -> None:
        try:
            parsed = make_url(self.url)
            if parsed.drivername in ("postgresql", "postgres"):
                parsed = parsed.set(drivername="postgresql+psycopg")
        except (ArgumentError, ValueError):
            parsed = None
        object.__setattr__(self, "_parsed", parsed)

    @property
    def _backend(self) -> str | None:
        return None if self._parsed is None else self._parsed.get_backend_name()

    @property
    def is_server(self) -> bool:
        """Whether another process, which may be started again, manages the storage."""
        return self._backend not in (None, "sqlite")

    @property
    def shown(self) -> str:
        """The URL without user, password and arguments."""
        if self._parsed is None:
            return self.url if self.url.isidentifier() else f"{self.url.partition(':')[0]}:..."
        parsed = self._parsed
        shown = URL.create(self.url.partition(":")[0], host=parsed.host, port=parsed.port, database=parsed.database)
        return shown.render_as_string()

    def redact(self, text: str) -> str:
        """Return a text without the password of the URL, in any spelling."""
        written = self.url.rpartition("@")[0].rpartition("//")[2].partition(":")[2]
        secrets = {written} - {""}
        if self._parsed is not None:
            named = [(name, value) for name, value in self._parsed.query.items() if any(s in name for s in _SECRET)]
            values = [value for _, found in named for value in ([found] if isinstance(found, str) else found)]
            secrets |= {str(value) for value in (self._parsed.password, *values) if value}
        for secret in sorted({form for s in secrets for form in (s, quote(s, safe=""), unquote(s))}, key=len)[::-1]:
            text = text.replace(secret, "***")
        return text

    def open(self, is_stopped: Callable[[], bool]) -> tuple[RDBStorage, Connection]:
        """Open the storage, and create its tables if there are none.

        Args:
            is_stopped: Returns whether to stop waiting for a server.

        Raises:
            CnnspecError: E0507 if the driver is not installed, E0516 if the storage cannot be opened.
        """
        # With the braces of a path doubled, because Optuna expands templates.
        url = self.url if self._parsed is None else self._parsed.render_as_string(hide_password=False)
        url = url.replace("{", "{{").replace("}", "}}")
        engine: dict[str, Any] = {"pool_pre_ping": True} if self.is_server else {}
        if self._backend == "sqlite":
            engine["connect_args"] = {"timeout": 60}
        if self._backend == "postgresql":  # psycopg returns bytes if the database has no encoding
            engine["connect_args"] = {"client_encoding": "utf8"}
        for left in reversed(range(_OPENINGS)):
            try:
                storage = RDBStorage(url, engine_kwargs=engine, heartbeat_interval=HEARTBEAT, grace_period=GRACE)
                return storage, Connection(storage, self, is_stopped)
            except (IntegrityError, ProgrammingError, StorageInternalError) as error:
                if not left or not self.is_server:
                    raise self.refusal(error) from None
                time.sleep(0.5)
            except ImportError as error:
                raise self._missing_driver(error) from None
            except Exception as error:  # databases raise errors of many classes  # noqa: BLE001
                raise self.refusal(error) from None
        raise AssertionError

    def _missing_driver(self, error: ImportError) -> CnnspecError:
        module = getattr(error.__cause__ or error, "name", None) or "a database driver"
        extra = "postgresql" if self._backend == "postgresql" else None
        return failure(
            "E0507",
            f"the storage `{self.shown}` requires `{module}`, which is not installed",
            help=f"install it with `pip install 'cnnspec[{extra}]'`" if extra else f"install `{module}`",
        )

    def refusal(self, error: Exception) -> CnnspecError:
        """Return the diagnostic for an error while the storage is opened."""
        return failure(
            "E0516",
            "cannot open the sweep storage",
            file=self.shown,
            notes=[self.redact(one_line(error, 300))],
            help="pass the URL of a database with `--storage`, such as `sqlite:///sweep.db` or"
            " `postgresql://localhost/sweeps`",
        )

    def explain(self, error: BaseException) -> BaseException:
        """Convert an error of the storage to a diagnostic. Return other errors unchanged."""
        found: BaseException | None = error
        while found is not None and not isinstance(found, StorageInternalError):  # Optuna may fail while it handles one
            found = found.__context__
        if found is None and type(error).__module__.split(".")[0] not in ("optuna", "sqlalchemy"):
            return error
        reason = error if found is None else found.__cause__ or found
        return failure(
            "E0516",
            "the sweep storage is no longer accessible",
            file=self.shown,
            notes=[self.redact(one_line(reason, 300))],
            help="check the storage, then repeat the command to resume",
        )


class Connection:
    """The connection to a storage, which is restored when the server comes back.

    Every operation of Optuna's storage is a transaction of its own, which is repeated.

    Attributes:
        restored: The time at which the connection was restored, by `time.monotonic`; None if it was never lost.
    """

    def __init__(self, storage: RDBStorage, address: Address, is_stopped: Callable[[], bool]) -> None:
        self.restored: float | None = None
        self._has_given_up = False  # what still follows must not wait again
        self._is_stopped = is_stopped
        if not address.is_server:
            return
        for name in (*optuna.storages.BaseStorage.__abstractmethods__, "_get_trials", "_get_stale_trial_ids"):
            setattr(storage, name, self._repeated(getattr(storage, name)))
        record = storage.record_heartbeat

        def record_if_possible(trial_id: int) -> None:
            try:
                record(trial_id)
            except StorageInternalError:  # the next heartbeat may succeed, and every other operation waits
                pass

        storage.record_heartbeat = record_if_possible  # type: ignore[method-assign]

    @property
    def is_settled(self) -> bool:
        """Whether processes that lost the server, too, have had the time for a heartbeat."""
        return self.restored is None or time.monotonic() - self.restored > GRACE

    def _repeated(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def repeat(*args: Any, **kwargs: Any) -> Any:
            end: float | None = None
            while True:
                try:
                    found = operation(*args, **kwargs)
                except StorageInternalError as error:
                    now = time.monotonic()
                    end = end or now + PATIENCE
                    if not _is_lost(error) or now > end or self._has_given_up or self._is_stopped():
                        self._has_given_up = True
                        raise
                    time.sleep(1)
                else:
                    if end is not None:
                        self.restored, self._has_given_up = time.monotonic(), False
                    return found

        return repeat


def _is_lost(error: StorageInternalError) -> bool:
    """Return whether an error means that the server does not respond, or has closed the connection."""
    cause = error.__cause__
    return isinstance(cause, DBAPIError) and (
        cause.connection_invalidated or type(cause.orig).__name__ in ("OperationalError", "InterfaceError")
    )
