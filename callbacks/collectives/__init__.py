"""Collective decisions of a training's workers, the role of this process, and work before it exits."""
