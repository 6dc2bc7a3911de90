"""The planning of a fleet's run: cores and hours by measured rates, marts by cluster, and settings of Spark."""
