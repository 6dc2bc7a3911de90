"""The driver's part of a training: attempts, watchdog, failure policy, elastic workers, signals."""
