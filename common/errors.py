"""Every error that Confed raises on purpose, and the exit status each one ends with.

    ConfedError
    |-- InputError                exit 2: the caller can mend it
    |   |-- ConfigError           configuration, command line
    |   |-- DataError             catalog, interactions, knowledge graph
    |   `-- ModelError            backbone, adapter file
    |-- RefusedError              exit 3: Confed will not do this
    |   |-- PrivacyRefused        it would cost privacy that is not there
    |   `-- SecurityRefused       it cannot be trusted
    `-- OrderError                exit 1: calls in the wrong order, a bug in the caller

A message is one line and says what was expected, what was found and what to do. It never
holds a cell value, a subject id or anything else that was computed from private records.
"""


class ConfedError(Exception):
    """Base of every error raised on purpose; `main` catches this one class."""

    exit_code = 1


class InputError(ConfedError):
    """Bad input that the caller can mend."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration value or a command-line option is wrong."""


class DataError(InputError):
    """A catalog, interaction or knowledge-graph file is wrong."""


class ModelError(InputError):
    """A backbone or an adapter file is wrong."""


class RefusedError(ConfedError):
    """Confed refuses, and nothing was spent or sent."""

    exit_code = 3


class PrivacyRefused(RefusedError):
    """Refused because the privacy claim would not hold."""


class SecurityRefused(RefusedError):
    """Refused because the source cannot be trusted."""


class OrderError(ConfedError):
    """Calls came in an order that the interface forbids."""
