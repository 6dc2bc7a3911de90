"""How the driver keeps a training alive: attempts, watchdog, failure policy, elastic workers, signals."""
