"""Files on any store: paths, atomic writes, listings, a cache per machine, and writes that become visible at once."""
