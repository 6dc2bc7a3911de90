"""What tests of faults share with those of undisturbed runs."""

from tests.cluster.conftest import some_flights

__all__ = ["some_flights"]
