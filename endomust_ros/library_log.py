"""What endomust_core logs (an engine that is built, a provider that is skipped) → the log of the node."""

import logging

SOURCE = "endomust_core"


class LibraryLog(logging.Handler):
    """Hands every line of the core on to a ROS logger until it is closed."""

    def __init__(self, ros_logger):
        super().__init__(logging.INFO)
        self._ros = ros_logger
        self._source = logging.getLogger(SOURCE)
        self._before = self._source.level, self._source.propagate
        self._source.setLevel(logging.INFO)
        self._source.propagate = False  # or it would be said twice
        self._source.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        text = record.getMessage()
        if record.levelno >= logging.ERROR:
            self._ros.error(text)
        elif record.levelno >= logging.WARNING:
            self._ros.warning(text)
        else:
            self._ros.info(text)

    def close(self) -> None:
        """Leave the core's log as it was found."""
        if self in self._source.handlers:
            self._source.removeHandler(self)
            self._source.level, self._source.propagate = self._before
        super().close()
